"""What a step will take before it runs: memory of a device and of a host, tokens, time. No torch, no Snakemake.

Follows from the configuration and from config.json files where they exist (model_shape.py, memory.py). Lengths
are the longest that the configuration lets through, so memory is what the worst batch takes; tokens and time are of
the expected lengths and throughputs in `forecast`. What is not known stays unknown: no size, no time is guessed.
"""

import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from scripts.lib.kinds.trainer import Trainer
from scripts.lib.planning import cluster, memory, model_shape
from scripts.lib.planning.card import Compute, Wildcards
from scripts.lib.planning.cards import CARDS
from scripts.lib.planning.explain import duration
from scripts.lib.planning.memory import GIB, Parts, Training
from scripts.lib.planning.plan import Plan

WIDTH = 110
# What a process of a step on a GPU takes of its host beside weights: torch with CUDA's libraries.
HOST = 3 * GIB
# Bytes of a token in the tables that every process reads, an estimate: four or five of text, and what lies beside it.
# Training rows are mapped from disk; what of them is in memory can go.
TOKEN = 8


@dataclass(frozen=True)
class Step:
    """A job's forecast: bytes by part on one device, bytes on one node, tokens, seconds. None is unknown.

    `group` is what the job's shards have in common.
    """

    rule: str
    group: str
    parts: Parts | None
    host: int | None
    tokens: float | None
    seconds: float | None


def computation(rule: str) -> Compute:
    """What a stage computes. Raises ValueError for one that does not."""
    compute = CARDS[rule].compute
    if compute is None:
        raise ValueError(f"{rule} does not compute")
    return compute


class Forecast:
    """Forecasts of the jobs of one plan."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.config = plan, plan.config
        self.runtime, self.expected = plan.config.runtime, plan.config.forecast
        self.gpu = self.runtime.device != "cpu"
        self._shapes: dict[str, model_shape.Shape | None] = {}

    def shape(self, model: str) -> model_shape.Shape | None:
        """The shape of base/NAME, sft/NAME or runs/NAME/iterN: that of the base that it descends from."""
        name = self.plan.base_of(model)
        if name not in self._shapes:
            self._shapes[name] = model_shape.of_base(self.config.bases[name], Path(self.plan.base(name)))
        return self._shapes[name]

    # Jobs

    def job(self, path: str) -> Step | None:
        """The forecast of the job that makes an artifact; None for a step that does not compute."""
        rule, wildcards = self.plan.maker(path)
        compute = CARDS[rule].compute
        if compute is None:
            return None
        shape = self.shape(compute.model(self.plan, wildcards))
        parts = self.parts(rule, wildcards, shape) if shape else None
        group = path.rsplit("/", 1)[0] if "shard" in wildcards else path
        tokens, seconds = compute.tokens(self.plan, wildcards), None
        rate: float | None = getattr(self.expected, f"{compute.kind}_tokens_per_second")
        if tokens is not None and rate is not None:
            seconds = tokens / (rate * cluster.needs(self.config, rule).world)
        host = self.host(rule, wildcards, shape, parts) if shape and parts else None
        return Step(rule, group, parts, host, tokens, seconds)

    def parts(self, rule: str, wildcards: Wildcards, shape: model_shape.Shape) -> Parts:
        """Bytes by part on one device at the moment that needs most."""
        kind = computation(rule).kind
        if kind == "train":
            return memory.training(self.training(rule, wildcards, shape))
        if kind == "sample":
            return self.sampling(wildcards, shape, self.runtime.generate_batch, self.runtime.vllm_tensor_parallel)
        return self.scoring(rule, wildcards, shape, self.runtime.score_tokens)

    def trainer(self, rule: str, wildcards: Wildcards) -> Trainer:
        """The settings block of a training step. Raises ValueError for a stage that does not train."""
        trainer = computation(rule).trainer
        if trainer is None:
            raise ValueError(f"{rule} does not train")
        return trainer(self.plan, wildcards)

    def training(self, rule: str, wildcards: Wildcards, shape: model_shape.Shape) -> Training:
        """A training step as the formulas take it."""
        compute, block, needed = computation(rule), self.trainer(rule, wildcards), cluster.needs(self.config, rule)
        share = block.batch_size // needed.world
        micro = max(1, min(self.runtime.train_micro_batch, share))
        return Training(
            shape,
            rows=micro * compute.sides,
            length=compute.longest(self.plan, wildcards),
            dtype=self.config.dtype,
            processes=needed.world,
            sharding=needed.sharding if compute.spreads else "data",
            lora=getattr(block, "lora", None),
            checkpointing=self.runtime.gradient_checkpointing,
            packed=bool(getattr(block, "packing", False)),
            attention=self.runtime.attention,
            accumulated=share > micro,
            scalar_head=compute.scalar_head,
            gate=compute.gated(self.plan, wildcards),
            scored=self.runtime.score_tokens if compute.scalar_head else 0,
            gpu=self.gpu,
        )

    def sampling(
        self, wildcards: Wildcards, shape: model_shape.Shape, rows: int, parallel: int, tokens: int | None = None
    ) -> Parts:
        """Bytes by part of sampling with so many responses at once, or with an engine over so many GPUs.

        `tokens` takes the place of `runtime.score_tokens` where log-probabilities are recorded.
        """
        block, dtype = self.config.samplings[wildcards["sampling"]], self.config.dtype
        prompt, new = block.max_prompt_tokens, block.max_new_tokens
        if block.engine == "vllm":
            cache = None if self.gpu else self.runtime.vllm_cpu_cache_gib
            return memory.vllm(shape, prompt + new, dtype, parallel, cache)
        scored = (self.runtime.score_tokens if tokens is None else tokens) if block.record_logprobs else 0
        return memory.sampling(shape, rows, prompt, new, dtype, block.top_p < 1, scored, self.gpu)

    def scoring(self, rule: str, wildcards: Wildcards, shape: model_shape.Shape, tokens: int) -> Parts:
        """Bytes by part of scoring batches of so many padded tokens."""
        compute, nf4 = computation(rule), bool(wildcards.get("quantized"))
        longest = compute.longest(self.plan, wildcards)
        return memory.scoring(shape, tokens, longest, self.config.dtype, compute.scalar_head, self.gpu, nf4)

    def host(self, rule: str, wildcards: Wildcards, shape: model_shape.Shape, parts: Parts) -> int:
        """Bytes that a job takes on one node.

        On the processor that is what its processes compute in. On GPUs every process loads the weights before they go
        to its GPU, float32 where training without DeepSpeed or adapters wants them so, and the first one gathers them
        in the end to save them. In training each holds its tables, counted where their size is known.
        """
        compute, processes = computation(rule), cluster.needs(self.config, rule).processes
        each = memory.BYTES[self.config.dtype]
        if not self.gpu:
            return processes * sum(parts.values())
        tables = 0
        loaded = saved = each * shape.parameters(compute.scalar_head)
        if compute.kind == "train":
            step = self.training(rule, wildcards, shape)
            loaded = (4 if step.sharding == "data" and step.lora is None else each) * step.parameters
            tokens = compute.tokens(self.plan, wildcards) or 0
            tables = round(TOKEN * tokens / self.trainer(rule, wildcards).epochs)
        return processes * (HOST + tables) + max(processes * loaded, saved)

    def side_by_side(self, rule: str) -> int:
        """Jobs of a rule that the build's GPUs have room for at once."""
        asked = {rule: cluster.needs(self.config, rule) for rule in cluster.computing()}
        devices = {rule: (needed.gpus or needed.processes) * needed.nodes for rule, needed in asked.items()}
        return max(1, (self.expected.gpus or max(devices.values())) // devices[rule])

    # The page

    def lines(self, paths: Iterable[str]) -> list[str]:
        """A forecast in words: for every rule of these jobs its memory by part, its tokens and its time."""
        rules: dict[str, list[Step]] = {}
        for step in filter(None, map(self.job, paths)):
            rules.setdefault(step.rule, []).append(step)
        page = []
        for rule, steps in rules.items():
            text = f"{rule}: {self._memory_in_words(rule, steps)}; {_work_in_words(steps, self.side_by_side(rule))}"
            page += textwrap.wrap(text, WIDTH, subsequent_indent="    ", break_on_hyphens=False)
        return page

    def _memory_in_words(self, rule: str, steps: list[Step]) -> str:
        known = [step for step in steps if step.parts is not None]
        if not known:
            return "memory not known: its base is not there, and has no `shape`"
        step = max(known, key=lambda step: sum((step.parts or {}).values()))
        device = self.expected.device_memory_gib
        of = f" of {size(device * GIB)}" if device else ""
        return f"{in_words(step.parts or {}, of)} {self._place(rule)}"

    def _place(self, rule: str) -> str:
        needed = cluster.needs(self.config, rule)
        count = max(needed.gpus if self.gpu else needed.processes, 1) * needed.nodes
        what = "GPU" if self.gpu else "process"
        return f"on one {what}" if count == 1 else f"on each of {count} {what}{'s' if self.gpu else 'es'}"


def _work_in_words(steps: list[Step], at_once: int) -> str:
    """Tokens and time of those whose tokens are known; shards run in waves, all else one after another."""
    known = [step for step in steps if step.tokens is not None]
    if not known:
        return "tokens not known: a data set without a size"
    rest = f"; and {len(steps) - len(known)} of unknown size" if len(known) < len(steps) else ""
    total = sum(step.tokens or 0 for step in known)
    scale, unit = next((s, u) for s, u in ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1, "")) if total >= s or s == 1)
    text = f"{total / scale:.3g}{unit} tokens"
    if any(step.seconds is None for step in known):
        return text + rest
    groups: dict[str, list[float]] = {}
    for step in known:
        groups.setdefault(step.group, []).append(step.seconds or 0.0)
    # A wave takes as long as its longest shard; the longest go first.
    seconds = sum(sum(sorted(group, reverse=True)[::at_once]) for group in groups.values())
    return f"{text}, {duration(seconds)}{rest}"


def in_words(parts: Parts, of: str = "") -> str:
    """`112.4 GiB (weights 29.9, …)`, largest first, in MiB where all of it is less than a GiB."""
    total = sum(parts.values())
    unit, digits = (GIB, 1) if total >= GIB else (2**20, 0)
    shown = sorted(((n / unit, name) for name, n in parts.items()), reverse=True)
    listed = ", ".join(f"{name} {n:.{digits}f}" for n, name in shown if n >= 0.5 / 10**digits)
    return f"{size(total)}{of} ({listed})"


def size(count: float) -> str:
    """`79.5 GiB` or `312 MiB`."""
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / 2**20:.0f} MiB"
