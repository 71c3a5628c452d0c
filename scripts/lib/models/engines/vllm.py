"""Generation by vLLM: token ids in, token ids out, so that no second BOS can slip in.

Requests are fed as the engine finds room, so one engine can go on from shard to shard without running dry, and each
response is handed back as soon as it has ended. Each is drawn with its own seed. On the processor, which others are in
flight changes no token (tests/unit/test_vllm.py); on a GPU it changes the last digits of logits, and so, now and then,
a draw, unless VLLM_BATCH_INVARIANT=1 is set where the GPU has such kernels.
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from scripts.lib.models import compile_cache
from scripts.lib.models.generation import Request, Response
from scripts.lib.stage.contract import Job
from scripts.lib.stage.errors import InputError

ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",  # the log, not the terminal
    # In this process the engine dies with the step. In one of its own it would outlive a kill and keep the GPU's
    # memory, while the GPU's slot and the step's lock are free.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # of several GPUs; torch has touched the first one already
    # FlashInfer's sampler is compiled at the start, which takes a CUDA toolkit (vllm issue 49497). It draws for no
    # request with a seed of its own, and ours all have one.
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
}
CPU_ENVIRONMENT = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # steps that run side by side would all be bound to the same cores
    "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
}
CPU_BATCHED_TOKENS = 4096
# What vLLM's message speaks of, and the settings that decide it.
LENGTH, PARALLEL = ("max_model_len (", "max seq len"), ("tensor parallel size", "World size (")
MEMORY = ("memory utilization", "`gpu_memory_utilization`", "out of memory", "KVCACHE_SPACE")


def load(job: Job, device: Any, stops: list[int]) -> "VllmEngine":
    """The engine with the weights of the job's input `policy`; generation ends at the tokens `stops`."""
    return VllmEngine(job.input("policy"), job.settings, job.runtime, stops, device.type == "cpu")


class VllmEngine:
    """vLLM's offline engine with a seed, a temperature and a nucleus of each request's own."""

    def __init__(
        self, policy: Path, settings: dict[str, Any], runtime: dict[str, Any], stops: list[int], on_cpu: bool
    ) -> None:
        self.stops = stops
        longest = settings["max_prompt_tokens"] + settings["max_new_tokens"]
        own = {
            "model": str(policy),
            "dtype": settings["dtype"],
            "max_model_len": longest,
            "seed": settings["seed"],
            "gpu_memory_utilization": runtime["vllm_memory"],
            "tensor_parallel_size": runtime["vllm_tensor_parallel"],
            "enable_prefix_caching": True,
            "generation_config": "vllm",  # the model's own must not change the sampling behind the settings' back
            "logprobs_mode": "raw_logprobs",  # at temperature 1, whatever the request's own is
        }
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        if on_cpu:
            own |= _prepare_cpu(runtime, longest)
        try:
            import vllm
        except ImportError as error:
            raise InputError(
                f"engine vllm: {error}\nHint: `make rollout-env` makes the environment, `runtime.rollout_python` names "
                "another; or set engine: transformers."
            ) from error
        processor = _check_platform(on_cpu)
        try:
            # Several engines that compile the same thing at once would write over each other's cache.
            with compile_cache.first_compiles(policy / "config.json", own, vllm.__version__, processor):
                self.llm = vllm.LLM(**own)
        except (ValueError, RuntimeError) as error:  # the second where memory runs out, or from workers of several GPUs
            if not (deciding := _deciding(str(error), on_cpu)):
                raise  # a bug, or this machine's: its traceback says more than a hint at settings would
            raise InputError(
                f"engine vllm does not take this sampling: {error}\nHint: change {' or '.join(deciding)}."
            ) from error
        # Twice what runs at once: even when all of it ends in one step there are as many waiting.
        self.window = 2 * int(self.llm.llm_engine.vllm_config.scheduler_config.max_num_seqs)

    def generate(self, requests: Iterable[Request]) -> Iterator[dict[int, Response]]:
        """Responses by the position of their request, those of one step at a time; see Engine."""
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt
        from vllm.sampling_params import RequestOutputKind

        def add(position: int, request: Request) -> None:
            parameters = SamplingParams(
                temperature=request.temperature,
                top_p=request.top_p,
                max_tokens=request.max_new_tokens,
                seed=request.seed,
                stop_token_ids=self.stops,
                logprobs=0 if request.logprob else None,  # of the token that was drawn, and of no other
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            engine.add_request(str(position), TokensPrompt(prompt_token_ids=request.prompt_ids), parameters)

        engine = self.llm.llm_engine
        source = enumerate(requests)
        waiting: dict[str, tuple[int, Request]] = {}
        while True:
            while len(waiting) < self.window and (item := next(source, None)):
                waiting[str(item[0])] = item
                add(*item)
            if not waiting:
                return
            found = {}
            for output in engine.step():
                if output.finished:
                    position, request = waiting.pop(output.request_id)
                    found[position] = self._response(request, output)
            if found:
                yield found

    def _response(self, request: Request, output: Any) -> Response:
        """vLLM keeps the stop token in token_ids; only its text is without it."""
        if list(output.prompt_token_ids) != request.prompt_ids:
            raise InputError(
                f"engine vllm continued {list(output.prompt_token_ids)}, not the prompt that it was given, "
                f"{request.prompt_ids}.\nHint: another release of vllm may treat prompts otherwise; use the pinned one."
            )
        completion = output.outputs[0]
        if completion.finish_reason not in ("stop", "length"):
            raise RuntimeError(f"engine vllm ended a response with {completion.finish_reason!r}")
        ids = list(completion.token_ids)
        total = None
        if request.logprob:
            total = sum(step[token].logprob for token, step in zip(ids, completion.logprobs, strict=True))
        return Response(ids, "stop" if ids and ids[-1] in self.stops else "length", total)


def _check_platform(on_cpu: bool) -> str:
    """The name of the GPU that vLLM computes on, or `cpu`.

    Raises InputError if that is elsewhere than `runtime.device` says: on cores, say, while a GPU idles.
    """
    from vllm.platforms import current_platform

    if current_platform.is_cpu() != on_cpu:
        where = ("a GPU", "the processor") if on_cpu else ("the processor", "a GPU")
        raise InputError(
            f"engine vllm is installed for {where[0]}, the step is to run on {where[1]}.\n"
            "Hint: `make rollout-env` takes the kind of the machine it runs on, GPU=1 or GPU=0 says it; or set "
            "runtime.device."
        )
    return str(current_platform.get_device_name())


def _deciding(message: str, on_cpu: bool) -> list[str]:
    """The settings that decide what vLLM complains about; none if it is no matter of settings."""
    found = {
        "max_prompt_tokens or max_new_tokens": LENGTH,
        "runtime.vllm_cpu_cache_gib" if on_cpu else "runtime.vllm_memory": MEMORY,
        "runtime.vllm_tensor_parallel": PARALLEL,
    }
    return [settings for settings, words in found.items() if any(word in message for word in words)]


def _prepare_cpu(runtime: dict[str, Any], longest: int) -> dict[str, Any]:
    """Set what vLLM's CPU kernels read from the environment, and return the engine's arguments for them."""
    import torch._dynamo

    for name, value in CPU_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(runtime["vllm_cpu_cache_gib"])
    torch._dynamo.config.disable = True  # its sampler would be compiled for longer than small models sample
    return {
        "enforce_eager": True,
        # A prompt that is cut in two would move its request's generator back, which a CPU generator cannot do.
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(longest, CPU_BATCHED_TOKENS),
    }
