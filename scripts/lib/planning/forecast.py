"""What a step will take before it runs: memory of a device and of a host, tokens, time. No torch, no Snakemake.

Follows from the configuration and from config.json files where they exist (model_shape.py, memory.py). Lengths
are the longest that the configuration lets through, so memory is what the worst batch takes; tokens and time are of
the expected lengths and throughputs in `forecast`. What is not known stays unknown: no size, no time is guessed.
"""

import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.lib.planning import cluster, memory, model_shape
from scripts.lib.planning.explain import duration
from scripts.lib.planning.memory import GIB, Parts, Training
from scripts.lib.planning.plan import Plan

Config = dict[str, Any]
WIDTH = 110
CONTEXT = 128  # scripts/make_base.py trains on no longer text
# What a process of a step on a GPU takes of its host beside weights: torch with CUDA's libraries.
HOST = 3 * GIB
# Bytes of a token in the tables that every process reads, an estimate: four or five of text, and what lies beside it.
# Training rows are mapped from disk; what of them is in memory can go.
TOKEN = 8
PAIRED = ("train_reward", "train_dpo")
TRAINED = (*cluster.TRAINING, "make_base")


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


class Forecast:
    """Forecasts of the jobs of one plan."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.config = plan, plan.config
        self.runtime, self.said = plan.config["runtime"], plan.config["forecast"]
        self.gpu = self.runtime["device"] != "cpu"
        self._shapes: dict[str, model_shape.Shape | None] = {}

    # Models

    def shape(self, model: str) -> model_shape.Shape | None:
        """The shape of base/NAME, sft/NAME or runs/NAME/iterN: that of the base that it descends from."""
        name = model.removeprefix("base/")
        if not model.startswith("base/"):
            name = self.config["sft"][self.plan.sft_of(model).removeprefix("sft/")]["base"]
        if name not in self._shapes:
            self._shapes[name] = model_shape.of_base(self.config["bases"][name], Path(self.plan.base(name)))
        return self._shapes[name]

    def model(self, rule: str, own: dict[str, str]) -> str:
        """The model that a job works on: what it starts from, samples from or scores with."""
        if rule == "make_base":
            return f"base/{own['base']}"
        if rule == "train_sft":
            return f"base/{self.config['sft'][own['sft']]['base']}"
        if "reward" in own:
            return str(self.config["rewards"][own["reward"]]["init"])
        if "scorer" in own:
            return own["scorer"]
        return self.plan.start(own["run"], int(own["n"])) if "run" in own else own["policy"]

    # Jobs

    def job(self, path: str) -> Step | None:
        """The forecast of the job that makes an artifact; None for a step that does not compute."""
        rule, own = self.plan.maker(path)
        if rule not in cluster.ON_GPU:
            return None
        shape = self.shape(self.model(rule, own))
        parts = self.parts(rule, own, shape) if shape else None
        group = path.rsplit("/", 1)[0] if "shard" in own else path
        tokens, seconds = self.tokens(rule, own), None
        kind = "train" if rule in TRAINED else "sample" if "sample" in rule else "score"
        rate = self.said[f"{kind}_tokens_per_second"]
        if tokens is not None and rate is not None:
            seconds = tokens / (rate * cluster.world(self.config, rule))
        host = self.host(rule, own, shape, parts) if shape and parts else None
        return Step(rule, group, parts, host, tokens, seconds)

    def parts(self, rule: str, own: dict[str, str], shape: model_shape.Shape) -> Parts:
        """Bytes by part on one device at the moment that needs most."""
        if rule in TRAINED:
            return memory.training(self.training(rule, own, shape))
        if rule == "sample_rollouts":
            return self.sampling(own, shape, self.runtime["generate_batch"], self.runtime["vllm_tensor_parallel"])
        return self.scoring(rule, own, shape, self.runtime["score_tokens"])

    def training(self, rule: str, own: dict[str, str], shape: model_shape.Shape) -> Training:
        """A training step as the formulas take it."""
        block, needed = self.block(rule, own), cluster.needs(self.config, rule)
        world = cluster.world(self.config, rule)
        share = block["batch_size"] // world
        micro = max(1, min(self.runtime["train_micro_batch"], share))
        return Training(
            shape,
            rows=micro * (2 if rule in PAIRED else 1),
            length=self.longest(rule, own),
            dtype=self.config["dtype"],
            processes=world,
            strategy=needed["strategy"] if rule in cluster.TRAINING else "data",
            lora=block.get("lora"),
            checkpointing=self.runtime["gradient_checkpointing"],
            packed=bool(block.get("packing")),
            attention=self.runtime["attention"],
            accumulated=share > micro,
            scalar_head=rule == "train_reward",
            gate=rule == "train_dpo"
            and self.plan.start(own["run"], int(own["n"])) == self.plan.reference(own["run"], int(own["n"])),
            scored=self.runtime["score_tokens"] if rule == "train_reward" else 0,
            gpu=self.gpu,
        )

    def sampling(
        self, own: dict[str, str], shape: model_shape.Shape, rows: int, parallel: int, tokens: int | None = None
    ) -> Parts:
        """Bytes by part of sampling with so many responses at once, or with an engine over so many GPUs.

        `tokens` takes the place of `runtime.score_tokens` where log-probabilities are recorded.
        """
        block, dtype = self.config["samplings"][own["sampling"]], self.config["dtype"]
        prompt, new = block["max_prompt_tokens"], block["max_new_tokens"]
        if block["engine"] == "vllm":
            return memory.vllm(
                shape, prompt + new, dtype, parallel, None if self.gpu else self.runtime["vllm_cpu_cache_gib"]
            )
        scored = (self.runtime["score_tokens"] if tokens is None else tokens) if block["record_logprobs"] else 0
        return memory.sampling(shape, rows, prompt, new, dtype, block["top_p"] < 1, scored, self.gpu)

    def scoring(self, rule: str, own: dict[str, str], shape: model_shape.Shape, tokens: int) -> Parts:
        """Bytes by part of scoring batches of so many padded tokens."""
        scalar = rule == "score_rollouts"
        longest, nf4 = self.longest(rule, own), bool(own.get("quantized"))
        return memory.scoring(shape, tokens, longest, self.config["dtype"], scalar, self.gpu, nf4)

    def host(self, rule: str, own: dict[str, str], shape: model_shape.Shape, parts: Parts) -> int:
        """Bytes that a job takes on one node.

        On the processor that is what its processes compute in. On GPUs every process loads the weights before they go
        to its GPU, float32 where training without DeepSpeed or adapters wants them so, and the first one gathers them
        in the end to save them. In training each holds its tables, counted where their size is known.
        """
        processes, each = cluster.needs(self.config, rule)["processes"], memory.BYTES[self.config["dtype"]]
        if not self.gpu:
            return processes * sum(parts.values())
        scalar = rule in ("train_reward", "score_rollouts")
        held = 0
        loaded = saved = each * shape.parameters(scalar)
        if rule in TRAINED:
            step = self.training(rule, own, shape)
            loaded = (4 if step.strategy == "data" and step.lora is None else each) * step.parameters
            held = round(TOKEN * (self.tokens(rule, own) or 0) / self.block(rule, own)["epochs"])
        return processes * (HOST + held) + max(processes * loaded, saved)

    # Sizes of the work

    def block(self, rule: str, own: dict[str, str]) -> Config:
        """The settings of a training step."""
        if rule in ("train_dpo", "train_raft"):
            found: Config = self.plan.run(own["run"], int(own["n"]))[rule.removeprefix("train_")]
            return found
        blocks = {"make_base": ("bases", "base"), "train_sft": ("sft", "sft"), "train_reward": ("rewards", "reward")}
        name, wildcard = blocks[rule]
        entry: Config = self.config[name][own[wildcard]]
        return entry

    def longest(self, rule: str, own: dict[str, str]) -> int:
        """Tokens of the longest sequence that a step may meet."""
        if rule == "make_base":
            return CONTEXT
        if rule in ("train_sft", "train_reward"):
            return int(self.block(rule, own)["max_length"])
        if rule in ("train_dpo", "train_raft"):
            run, limit = self.plan.run(own["run"], int(own["n"])), int(self.block(rule, own)["max_length"])
            numbers = range(1, int(own["n"]) + 1) if run["train_on"] == "all" else [int(own["n"])]
            sampled = [self._room(self.plan.run(own["run"], n)["sampling"]) for n in numbers if run["prompts"]]
            return limit if run["mix"] or not sampled else min(limit, max(sampled))
        if "sampling" in own:
            return self._room(own["sampling"])
        parts = own["tail"].split("/")
        if "rollouts" in parts:
            return self._room(parts[parts.index("rollouts") + 1])
        return max([run["dpo"]["max_length"] for run in self.config["runs"].values() if run["mix"]], default=0)

    def _room(self, sampling: str) -> int:
        block = self.config["samplings"][sampling]
        return int(block["max_prompt_tokens"] + block["max_new_tokens"])

    def tokens(self, rule: str, own: dict[str, str]) -> float | None:
        """Tokens that a job works through, at the expected lengths; in sampling those that it writes."""
        prompt, response = self.said["prompt_tokens"], self.said["response_tokens"]
        rows: float | None
        if "shard" in own:
            sampling = self.config["samplings"][own["sampling"]]
            written = min(response, sampling["max_new_tokens"])
            read = 0 if rule == "sample_rollouts" else min(prompt, sampling["max_prompt_tokens"])
            return float(self._prompts(own["prompts"], int(own["shard"])) * sampling["k"] * (written + read))
        if rule == "check_engine":
            each = self.config["samplings"][own["sampling"]]["check_responses"]
            return float(len(self.plan.shards(own["prompts"])) * each * (prompt + response))
        if rule == "score_reference":
            rows = self._pairs(own["tail"])
            return None if rows is None else 2 * rows * (prompt + response)
        block = self.block(rule, own)
        if rule == "make_base":
            rows = block["texts"]
        elif rule in ("train_sft", "train_reward"):
            rows = self._rows(block["dataset"])
        else:
            rows = self._trained(rule, own)
        if rows is None:
            return None
        each = min(prompt + response, self.longest(rule, own))
        return float(rows * (2 if rule in PAIRED else 1) * each * block["epochs"])

    def _prompts(self, prompts: str, shard: int | None = None) -> int:
        block = self.config["prompts"][prompts.rsplit("-", 1)[0]]
        if shard is None:
            return int(block["size"])
        return int(min(block["shard_prompts"], block["size"] - shard * block["shard_prompts"]))

    def _rows(self, dataset: str) -> float | None:
        """Rows of a data set: its size, or the part that it takes of the rows that its hub's files should have."""
        block = self.config["datasets"][dataset]
        if block["size"] is not None or block.get("rows") is None:
            size: float | None = block["size"]
            return size
        first, last = block["part"]
        return float(round(block["rows"] * (last - first)))

    def _pairs(self, tail: str) -> float | None:
        """Pairs of a table at most: one for each prompt, or those of a data set, and no more than its pairing takes."""
        parts = tail.split("/")
        limit = self.config["pairings"][parts[-1]]["size"]
        if parts[0] == "data":
            size = self._rows(parts[1])
        else:
            size = self._prompts(parts[parts.index("rollouts") + 2])
        known = [number for number in (size, limit) if number is not None]
        return min(known) if known else None

    def _trained(self, rule: str, own: dict[str, str]) -> float | None:
        name, n = own["run"], int(own["n"])
        if rule == "train_raft":
            numbers = range(1, n + 1) if self.plan.run(name, n)["train_on"] == "all" else [n]
            return sum(self._prompts(self.plan.sampled(name, i)[2]) for i in numbers)
        total = 0.0
        for part in self.plan.pair_sources(name, n):
            rows = self._pairs(part.pairs.removeprefix(self.plan.root + "/").removesuffix(".parquet"))
            if rows is None:
                return None
            total += rows * part.weight
        return total

    def side_by_side(self, rule: str) -> int:
        """Jobs of a rule that the build's GPUs have room for at once."""
        asked = {rule: cluster.needs(self.config, rule) for rule in cluster.ON_GPU}
        each = {rule: (needed["gpus"] or needed["processes"]) * needed["nodes"] for rule, needed in asked.items()}
        return max(1, (self.said["gpus"] or max(each.values())) // each[rule])

    # The page

    def lines(self, paths: Iterable[str]) -> list[str]:
        """A forecast in words: for every rule of these jobs its memory by part, its tokens and its time."""
        rules: dict[str, list[Step]] = {}
        for step in filter(None, map(self.job, paths)):
            rules.setdefault(step.rule, []).append(step)
        found = []
        for rule, steps in rules.items():
            text = f"{rule}: {self._memory_in_words(rule, steps)}; {_work_in_words(steps, self.side_by_side(rule))}"
            found += textwrap.wrap(text, WIDTH, subsequent_indent="    ", break_on_hyphens=False)
        return found

    def _memory_in_words(self, rule: str, steps: list[Step]) -> str:
        known = [step for step in steps if step.parts is not None]
        if not known:
            return "memory not known: its base is not there, and has no `shape`"
        step = max(known, key=lambda step: sum((step.parts or {}).values()))
        device = self.said["device_memory_gib"]
        of = f" of {size(device * GIB)}" if device else ""
        return f"{in_words(step.parts or {}, of)} {self._place(rule)}"

    def _place(self, rule: str) -> str:
        needed = cluster.needs(self.config, rule)
        count = max(needed["gpus"] if self.gpu else needed["processes"], 1) * needed["nodes"]
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
