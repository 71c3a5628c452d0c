"""Our vLLM engine beside a bare `LLM.generate` and beside transformers' `generate`: the same policy, prompts and K.

    python -m tests.bench.sample_time results/PRESET/sft/NAME/policy results/PRESET/prompts/SET-1.parquet

In the environment with vLLM. One engine serves both sides, in turns that begin with another side each round; its cache
of prefixes is emptied before each. Tokens per second are those of the whole round, from the first request to the last
response, in the best of the rounds. `--transformers N` adds transformers on N of the prompts.
"""

import argparse
import time
from pathlib import Path

from scripts.lib.data import tables
from scripts.lib.data.schemas.prompts import PROMPTS
from scripts.lib.data.seeds import derive_seed
from scripts.lib.models import chat, loading
from scripts.lib.models.generation import Request


def requests_of(tokenizer, prompts: list[dict], k: int, new: int, logprobs: bool) -> list[Request]:
    """K requests for each prompt at temperature 1, as sample_rollouts makes them."""
    encoded = [(row, chat.prompt_ids(tokenizer, row["messages"])) for row in prompts]
    return [
        Request(ids, 1.0, 1.0, new, derive_seed(1, row["prompt_id"], i), logprobs)
        for row, ids in encoded
        for i in range(k)
    ]


def ours(engine, requests: list[Request]) -> int:
    """Tokens that our engine draws."""
    found = {i: r for responses in engine.generate(requests) for i, r in responses.items()}
    assert len(found) == len(requests)
    return sum(len(response.token_ids) for response in found.values())


def bare(engine, requests: list[Request]) -> int:
    """Tokens that `LLM.generate` draws, all requests given at once."""
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt

    parameters = [
        SamplingParams(
            temperature=request.temperature,
            max_tokens=request.max_new_tokens,
            seed=request.seed,
            stop_token_ids=engine.stops,
            logprobs=0 if request.logprob else None,
            detokenize=False,
        )
        for request in requests
    ]
    prompts = [TokensPrompt(prompt_token_ids=request.prompt_ids) for request in requests]
    outputs = engine.llm.generate(prompts, parameters, use_tqdm=False)
    return sum(len(output.outputs[0].token_ids) for output in outputs)


def main() -> None:
    """Print tokens per second of each side, and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("policy", type=Path)
    parser.add_argument("prompts", type=Path)
    parser.add_argument("--count", type=int, default=64, help="prompts")
    parser.add_argument("--k", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=64, help="longest response")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--transformers", type=int, default=0, metavar="N", help="prompts for transformers")
    args = parser.parse_args()

    device = loading.prepare({"device": "auto", "torch_threads": args.threads})
    tokenizer = loading.load_tokenizer(args.policy)
    stops = chat.stop_ids(tokenizer, loading.generation_config(args.policy))
    prompts = tables.read_table(args.prompts, PROMPTS).to_dicts()[: args.count]
    requests = requests_of(tokenizer, prompts, args.k, args.tokens, logprobs=False)
    longest = max(len(request.prompt_ids) for request in requests)
    settings = {"max_prompt_tokens": longest, "max_new_tokens": args.tokens, "dtype": "float32", "seed": 1}
    if device.type != "cpu":
        settings["dtype"] = "bfloat16"
    runtime = {"vllm_memory": 0.8, "vllm_cpu_cache_gib": 2, "vllm_tensor_parallel": 1}

    from scripts.lib.models.engines.vllm import VllmEngine

    engine = VllmEngine(args.policy, settings, runtime, stops, device.type == "cpu")
    best = {"ours": 0.0, "bare": 0.0}
    ours(engine, requests[: 4 * args.k])  # warm
    for round_ in range(args.rounds):
        for side in ("ours", "bare")[:: 1 if round_ % 2 else -1]:
            engine.llm.reset_prefix_cache()
            started = time.perf_counter()
            tokens = {"ours": ours, "bare": bare}[side](engine, requests)
            speed = tokens / (time.perf_counter() - started)
            best[side] = max(best[side], speed)
            print(f"round {round_ + 1}  {side:5} {tokens} tokens, {speed:,.0f} tokens/s", flush=True)
    print(f"our engine {best['ours']:,.0f}, LLM.generate {best['bare']:,.0f}: ratio {best['ours'] / best['bare']:.3f}")
    if args.transformers:
        from scripts.lib.models.engines.transformers import TransformersEngine

        own = TransformersEngine(args.policy, settings, {"generate_batch": 64, "score_tokens": 4096}, stops, device)
        part = requests[: args.transformers * args.k]
        started = time.perf_counter()
        speed = ours(own, part) / (time.perf_counter() - started)
        print(f"transformers {speed:,.0f} tokens/s: vLLM is {best['ours'] / speed:.2f} times as fast")


if __name__ == "__main__":
    main()
