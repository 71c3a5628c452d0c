"""Generation by vLLM: token ids in, token ids out, so that no second BOS can slip in."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scripts.lib.errors import InputError
from scripts.sample_rollouts import Request, Response


class VllmEngine:
    """vLLM's offline engine with a seed and a temperature of each request's own."""

    def __init__(self, policy: Path, settings: dict[str, Any], runtime: dict[str, Any], stops: list[int]) -> None:
        try:
            from vllm import LLM
        except ImportError as error:
            raise InputError(
                f"engine vllm: {error}\nHint: install vllm where sampling runs, or set engine: transformers."
            ) from error

        self.stops = stops
        self.llm = LLM(
            model=str(policy),
            dtype=settings["dtype"],
            max_model_len=settings["max_prompt_tokens"] + settings["max_new_tokens"],
            seed=settings["seed"],
            gpu_memory_utilization=runtime["vllm_memory"],
            tensor_parallel_size=runtime["vllm_tensor_parallel"],
            enable_prefix_caching=True,
            generation_config="vllm",
        )

    def generate(self, requests: list[Request], logprobs: bool) -> Iterator[dict[int, Response]]:
        """Responses by index, all at once; see Engine."""
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt

        parameters = [
            SamplingParams(
                temperature=request.temperature,
                top_p=request.top_p,
                max_tokens=request.max_new_tokens,
                seed=request.seed,
                stop_token_ids=self.stops,
                logprobs=0 if logprobs else None,
                detokenize=False,
            )
            for request in requests
        ]
        prompts = [TokensPrompt(prompt_token_ids=request.prompt_ids) for request in requests]
        outputs = self.llm.generate(prompts, parameters)
        yield {i: self._response(output.outputs[0], logprobs) for i, output in enumerate(outputs)}

    def _response(self, completion: Any, logprobs: bool) -> Response:
        # vLLM keeps the stop token in token_ids; only its text is without it.
        ids = list(completion.token_ids)
        finish = "stop" if ids and ids[-1] in self.stops else "length"
        total = None
        if logprobs:
            total = sum(step[token].logprob for token, step in zip(ids, completion.logprobs, strict=True))
        return Response(ids, finish, total)
