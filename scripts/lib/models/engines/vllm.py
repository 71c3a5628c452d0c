"""Generation by vLLM: token ids in, token ids out, so that no second BOS can slip in.

Requests are added as the engine has room, so one engine can move from shard to shard without running idle, and each
response is returned as soon as it is finished. Each is drawn with its own seed. On the CPU, the other requests in
flight change no token (tests/unit/test_vllm.py). On a GPU they change the last digits of logits, and so occasionally a
draw, unless VLLM_BATCH_INVARIANT=1 is set and the GPU has batch-invariant kernels.
"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from scripts.lib.kinds.runtime import Runtime
from scripts.lib.kinds.sampling import SampleRollouts
from scripts.lib.models import compile_cache
from scripts.lib.models.generation import Request, Response
from scripts.lib.stage.contract import Job
from scripts.lib.stage.errors import InputError

ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",  # the log, not the terminal
    # An engine in this process dies with the step. In a process of its own it would survive a kill and keep the GPU's
    # memory, although the GPU's slot and the step's lock have been released.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # of several GPUs: CUDA, once initialised, does not survive a fork
    # FlashInfer's sampler is compiled at start-up, which needs a CUDA toolkit (vllm issue 49497). It never serves
    # requests that have their own seed, and all of ours do.
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
}
CPU_ENVIRONMENT = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # concurrent steps would all be bound to the same cores
    "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
}
CPU_BATCHED_TOKENS = 4096
# Phrases in vLLM's error messages that point to settings; see _deciding.
LENGTH, PARALLEL = ("max seq len",), ("tensor parallel size", "World size (")
MEMORY = ("memory utilization", "`gpu_memory_utilization`", "out of memory", "KVCACHE_SPACE")


def load(job: Job[SampleRollouts], device: Any, stops: list[int]) -> "VllmEngine":
    """The engine with the weights of the job's input `policy`; generation ends at the tokens `stops`."""
    return VllmEngine(job.input("policy"), job.settings, job.runtime, stops, device.type == "cpu")


class VllmEngine:
    """vLLM's offline engine; each request has its own seed, temperature and top_p."""

    def __init__(
        self, policy: Path, settings: SampleRollouts, runtime: Runtime, stops: list[int], on_cpu: bool
    ) -> None:
        self.stops = stops
        longest = settings.max_prompt_tokens + settings.max_new_tokens
        engine_options = {
            "model": str(policy),
            "dtype": settings.dtype,
            "max_model_len": longest,
            "seed": settings.seed,
            "gpu_memory_utilization": runtime.vllm_memory,
            "tensor_parallel_size": runtime.vllm_tensor_parallel,
            "enable_prefix_caching": True,
            "generation_config": "vllm",  # else the model's own file would silently override sampling parameters
            "logprobs_mode": "raw_logprobs",  # at temperature 1, whatever the request's temperature
        }
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        if on_cpu:
            engine_options |= _prepare_cpu(runtime, longest)
        try:
            import vllm
        except ImportError as error:
            raise InputError(
                f"engine vllm: {error}\nHint: `make rollout-env` creates its environment and `runtime.rollout_python` "
                "names another; or set engine: transformers."
            ) from error
        processor = _check_platform(on_cpu)
        try:
            # Engines that compile the same thing at the same time would overwrite each other's cache.
            with compile_cache.first_compiles(policy / "config.json", engine_options, vllm.__version__, processor):
                self.llm = vllm.LLM(**engine_options)
        except (ValueError, RuntimeError) as error:  # RuntimeError: out of memory, or from a worker
            if not (deciding := _deciding(str(error), on_cpu)):
                raise  # a bug or a broken machine: the traceback helps more than a hint about settings
            raise InputError(
                f"engine vllm rejects these settings: {error}\nHint: change {' or '.join(deciding)}."
            ) from error
        # Twice what runs at once: even if every running request ends in one step, as many are waiting.
        self.window = 2 * int(self.llm.llm_engine.vllm_config.scheduler_config.max_num_seqs)

    def generate(self, requests: Iterable[Request]) -> Iterator[dict[int, Response]]:
        """Responses by the position of their request, those finished in one step at a time; see Engine."""
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
                logprobs=0 if request.logprob else None,  # 0: only the log-probability of the sampled token
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
            finished = {}
            for output in engine.step():
                if output.finished:
                    position, request = waiting.pop(output.request_id)
                    finished[position] = self._response(request, output)
            if finished:
                yield finished

    def _response(self, request: Request, output: Any) -> Response:
        """A finished request's response. vLLM leaves the stop token in token_ids; only its text lacks it."""
        if list(output.prompt_token_ids) != request.prompt_ids:
            raise InputError(
                f"engine vllm continued {list(output.prompt_token_ids)}, not the prompt that it was given, "
                f"{request.prompt_ids}.\nHint: other vllm releases may treat prompts differently; use the pinned one."
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
    """The name of the GPU that vLLM runs on, or `cpu`.

    Raises InputError if vLLM was built for another kind of device than `runtime.device` asks for: it would run on CPU
    cores, say, while a GPU is idle.
    """
    from vllm.platforms import current_platform

    if current_platform.is_cpu() != on_cpu:
        where = ("a GPU", "the processor") if on_cpu else ("the processor", "a GPU")
        raise InputError(
            f"engine vllm is installed for {where[0]}, the step is to run on {where[1]}.\n"
            "Hint: `make rollout-env` installs for the machine it runs on, `GPU=1` or `GPU=0` overrides that; or set "
            "runtime.device."
        )
    return str(current_platform.get_device_name())


def _deciding(message: str, on_cpu: bool) -> list[str]:
    """The settings that could fix what vLLM complains about; empty if no setting could."""
    phrases_of = {
        "max_prompt_tokens or max_new_tokens": LENGTH,
        "runtime.vllm_cpu_cache_gib" if on_cpu else "runtime.vllm_memory": MEMORY,
        "runtime.vllm_tensor_parallel": PARALLEL,
    }
    return [settings for settings, phrases in phrases_of.items() if any(phrase in message for phrase in phrases)]


def _prepare_cpu(runtime: Runtime, longest: int) -> dict[str, Any]:
    """Set what vLLM's CPU kernels read from the environment, and return the engine's arguments for them."""
    import torch._dynamo

    for name, value in CPU_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(runtime.vllm_cpu_cache_gib)
    torch._dynamo.config.disable = True  # compiling its sampler takes longer than small models take to sample
    return {
        "enforce_eager": True,
        # A prompt prefilled in chunks has its request's generator rewound, which a CPU generator does not support.
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(longest, CPU_BATCHED_TOKENS),
    }
