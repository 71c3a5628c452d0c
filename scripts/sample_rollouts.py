"""K responses of a policy to each prompt of one shard.

Every response has its own seed, derived from the sampling's seed, the prompt and k, so it does not depend on which
others are generated beside it. K is split into equal blocks, one per temperature (the paper's mix is 1.0 and 0.7).
Finish reasons are kept: a response that was cut off must not be trained on as if it were whole.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from scripts.lib import schemas, stage
from scripts.lib.errors import InputError
from scripts.lib.seeds import derive_seed


@dataclass(frozen=True)
class Request:
    """One response to draw: token ids to continue, temperature (0 is greedy), nucleus mass, its own seed."""

    prompt_ids: list[int]
    temperature: float
    top_p: float
    max_new_tokens: int
    seed: int


@dataclass(frozen=True)
class Response:
    """Token ids up to and including the stop token if there is one, and log-probability in nats if asked for."""

    token_ids: list[int]
    finish_reason: str
    logprob: float | None


class Engine(Protocol):
    """What generates: `transformers` (scripts/lib/engine_transformers.py) or `vllm` (scripts/lib/engine_vllm.py)."""

    def generate(self, requests: list[Request], logprobs: bool) -> Iterator[dict[int, Response]]:
        """One response per request, each under its request's index, some at a time, as they are finished."""


def temperature_of(k: int, samples: int, temperatures: list[float]) -> float:
    """The temperature of the k-th of `samples` responses: equal blocks in the order given."""
    return temperatures[k * len(temperatures) // samples]


def run(job: stage.Job) -> None:
    """Sample one shard of a prompt set."""
    from scripts.lib import chat, models

    settings = job.settings
    device = models.prepare(job.runtime)
    everything = schemas.read_table(job.input("prompts"), schemas.PROMPTS).to_dicts()
    first, last = settings["first"], settings["first"] + settings["prompts"]
    prompts = everything[first:last]
    if len(prompts) < settings["prompts"]:
        raise InputError(
            f"{job.input('prompts')}: {len(everything)} prompts, of which this shard is rows {first} to {last}.\n"
            "Hint: the prompt set is shorter than its configured size; delete it and run Snakemake."
        )
    tokenizer = models.load_tokenizer(job.input("policy"))
    stops = chat.stop_ids(tokenizer, models.generation_config(job.input("policy")))
    encoded = [(prompt, chat.prompt_ids(tokenizer, prompt["messages"])) for prompt in prompts]
    kept = [(prompt, ids) for prompt, ids in encoded if len(ids) <= settings["max_prompt_tokens"]]
    requests, about = [], []
    for prompt, ids in kept:
        for k in range(settings["k"]):
            temperature = temperature_of(k, settings["k"], settings["temperatures"])
            seed = derive_seed(settings["seed"], prompt["prompt_id"], k)
            requests.append(Request(ids, temperature, settings["top_p"], settings["max_new_tokens"], seed))
            about.append((prompt, k))
    responses = generate(job, requests, lambda: load_engine(job, device, stops))
    rows = [
        row(prompt, k, request, response, chat.response_text(tokenizer, response.token_ids, stops))
        for (prompt, k), request, response in zip(about, requests, responses, strict=True)
    ]
    truncated = sum(response.finish_reason == "length" for response in responses)
    job.counts = {
        "prompts_in": len(prompts),
        "dropped_long_prompts": len(prompts) - len(kept),
        "responses_out": len(rows),
        "truncated": truncated,
    }
    job.metrics = {"tokens": sum(len(response.token_ids) for response in responses) / max(1, len(rows))}
    schemas.write_table(job.output, rows, schemas.ROLLOUTS, ("prompt_id", "k"))
    job.note = f"{len(rows)} responses to {len(kept)} prompts, {job.metrics['tokens']:.1f} tokens, {truncated} cut off"


def generate(job: stage.Job, requests: list[Request], load: Callable[[], Engine]) -> list[Response]:
    """One response per request, in order; those that an interrupted step has finished are not drawn again."""
    from scripts.lib.chunks import Chunks

    chunks = Chunks(job.work / "chunks", job.runtime["checkpoint_minutes"])
    missing = [i for i in range(len(requests)) if i not in chunks.rows]
    if missing:
        for found in load().generate([requests[i] for i in missing], job.settings["record_logprobs"]):
            chunks.add({missing[i]: asdict(response) for i, response in found.items()})
            stage.progress(f"{len(chunks.rows)}/{len(requests)} responses sampled")
    return [Response(**chunks.rows[i]) for i in range(len(requests))]


def load_engine(job: stage.Job, device: Any, stops: list[int]) -> Engine:
    """The engine named in settings, with the policy's weights."""
    if job.settings["engine"] == "vllm":
        from scripts.lib.engine_vllm import VllmEngine

        return VllmEngine(job.input("policy"), job.settings, job.runtime, stops)
    from scripts.lib.engine_transformers import TransformersEngine

    return TransformersEngine(job.input("policy"), job.settings, job.runtime, stops, device)


def row(prompt: dict[str, Any], k: int, request: Request, response: Response, text: str) -> dict[str, Any]:
    """A row of the rollouts table."""
    return {
        "prompt_id": prompt["prompt_id"],
        "k": k,
        "messages": prompt["messages"],
        "metadata": prompt["metadata"],
        "prompt_ids": request.prompt_ids,
        "response": text,
        "token_ids": response.token_ids,
        "finish_reason": response.finish_reason,
        "tokens": len(response.token_ids),
        "temperature": request.temperature,
        "seed": request.seed,
        "logprob": response.logprob,
    }


def main(argv: list[str] | None = None) -> int:
    """Command line; see `--help`."""
    return stage.execute("sample_rollouts", run, ("policy", "prompts"), argv)


if __name__ == "__main__":
    sys.exit(main())
