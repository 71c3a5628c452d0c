"""Steps that cannot fit into the memory there is: complaints, with the changes that would make them fit. No torch."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from scripts.lib.planning import cluster, memory, model_shape
from scripts.lib.planning.forecast import PAIRED, TRAINED, Forecast, in_words, size
from scripts.lib.planning.memory import GIB, Parts, Training
from scripts.lib.planning.plan import Plan
from scripts.lib.stage.errors import Complaints

PROCESSES, PARALLEL, SHORTEST, HINTS = (2, 4, 8, 16, 32, 64), (2, 4, 8, 16), 256, 5
CHECKPOINTING, SCORE_TOKENS = "runtime.gradient_checkpointing: true", "runtime.score_tokens"

Own = dict[str, str]


def check(plan: Plan, found: Complaints) -> None:
    """Complain of a shape that is not its model's, and of every step that does not fit its device or its node.

    Nothing is held against a device or a node unless `forecast.device_memory_gib` says what a device has.
    """
    for name, block in plan.config["bases"].items():
        model_shape.check(f"bases.{name}", block, Path(plan.base(name)), found)
    if plan.config["forecast"]["device_memory_gib"] is None:
        return
    forecast, seen = Forecast(plan), set[str]()
    for path in plan.artifacts(*plan.asked("all")):
        rule, own = plan.maker(path)
        if rule not in cluster.ON_GPU or own.get("shard", "0") != "0":
            continue
        step = forecast.job(path)
        alike = f"{rule} {step.parts if step else None}"
        if step is None or step.parts is None or step.host is None or alike in seen:
            continue
        seen.add(alike)
        room = _room(forecast, rule, own)
        if sum(step.parts.values()) > room:
            key, value, fixes = _fixes(forecast, rule, own, room)
            name = step.group.removeprefix(plan.root + "/")
            text = f"{rule} of {name} needs {in_words(step.parts)} of {size(room)} that there are"
            found.add(key, value, text, ("; or ".join(fixes[:HINTS]) or "a smaller model or a larger device") + ".")
        elif step.host > (asked := cluster.needs(plan.config, rule)["mem_mb"]) * 2**20 and rule not in seen:
            seen.add(rule)
            needed = -(-step.host // 2**20)
            text = f"{rule} of {step.group.removeprefix(plan.root + '/')} takes {needed} MiB of a node"
            found.add(f"resources.{rule}.mem_mb", asked, text, f"{needed} or more, or fewer processes on a node.")


def _room(forecast: Forecast, rule: str, own: Own) -> float:
    """Bytes that a process of a step may take: a GPU's, vLLM's share of it, or a process's share of the machine."""
    room: float = forecast.said["device_memory_gib"] * GIB
    if not forecast.gpu:
        return room / cluster.needs(forecast.config, rule)["processes"]
    return room * forecast.runtime["vllm_memory"] if _by_vllm(forecast, rule, own) else room


def _by_vllm(forecast: Forecast, rule: str, own: Own) -> bool:
    return rule == "sample_rollouts" and forecast.config["samplings"][own["sampling"]]["engine"] == "vllm"


def _fixes(forecast: Forecast, rule: str, own: Own, room: float) -> tuple[str, Any, list[str]]:
    """(key to change, its value, changes that make a step fit)."""
    shape = forecast.shape(forecast.model(rule, own))
    if shape is None:
        raise ValueError(f"{rule}: no shape, so nothing was forecast")
    if rule in TRAINED:
        return _training(forecast, rule, own, shape, room)

    def fits(parts: Parts) -> bool:
        return sum(parts.values()) <= room

    if _by_vllm(forecast, rule, own):
        key, value = "runtime.vllm_tensor_parallel", forecast.runtime["vllm_tensor_parallel"]
        wider = [n for n in PARALLEL if n > value and shape.heads % n == 0]
        return key, value, _first((f"{key}: {n}", fits(forecast.sampling(own, shape, 1, n))) for n in wider)
    if rule == "sample_rollouts":
        rows, tokens = forecast.runtime["generate_batch"], forecast.runtime["score_tokens"]
        if fits(forecast.sampling(own, shape, rows, 1, tokens=0)):  # it is the recording of log-probabilities
            smaller = ((n, forecast.sampling(own, shape, rows, 1, n)) for n in _halves(tokens, 1))
            return SCORE_TOKENS, tokens, _first((f"{SCORE_TOKENS}: {n}", fits(parts)) for n, parts in smaller)
        key, value = "runtime.generate_batch", rows
        fixes = _first((f"{key}: {n}", fits(forecast.sampling(own, shape, n, 1))) for n in _halves(value, 1))
        if forecast.gpu:
            length, share = forecast.longest(rule, own), forecast.runtime["vllm_memory"]
            spread = {n: memory.vllm(shape, length, forecast.config["dtype"], n) for n in (1, *PARALLEL)}
            where = f"samplings.{own['sampling']}.engine: vllm with runtime.vllm_tensor_parallel"
            fixes += _first(
                (f"{where}: {n}", sum(parts.values()) <= share * room)
                for n, parts in spread.items()
                if shape.heads % n == 0
            )
        return key, value, fixes
    key, value = SCORE_TOKENS, forecast.runtime["score_tokens"]
    return key, value, _first((f"{key}: {n}", fits(forecast.scoring(rule, own, shape, n))) for n in _halves(value, 1))


def _training(
    forecast: Forecast, rule: str, own: Own, shape: model_shape.Shape, room: float
) -> tuple[str, Any, list[str]]:
    """`_fixes` of a training step: each change alone, else with checkpointing, else row by row as well."""
    step, block = forecast.training(rule, own, shape), forecast.block(rule, own)
    sides, batch = (2 if rule in PAIRED else 1), block["batch_size"]
    micro, where = step.rows // sides, _where(rule, own)

    def fits(changed: Training) -> bool:
        # Without GPUs more processes share one machine; `room` is what one of those that there are has of it.
        whole = 1 if step.gpu else step.processes / changed.processes
        return sum(memory.training(changed).values()) <= room * whole

    if step.scored and fits(replace(step, scored=0)):  # it is the held-out pairs of a reward model
        smaller = ((n, replace(step, scored=n)) for n in _halves(step.scored, 1))
        return SCORE_TOKENS, step.scored, _first((f"{SCORE_TOKENS}: {n}", fits(changed)) for n, changed in smaller)

    def cut(changed: Training, rows: int, processes: int) -> Training:
        share = batch // processes
        rows = min(rows, share)
        return replace(changed, rows=sides * rows, processes=processes, accumulated=share > rows)

    ways = [("", step)]
    if not step.checkpointing:
        ways.append((f" with {CHECKPOINTING}", replace(step, checkpointing=True)))
    if micro > 1:
        lean = cut(replace(step, checkpointing=True), 1, step.processes)
        ways.append((f" with {CHECKPOINTING} and runtime.train_micro_batch: 1", lean))
    share = batch // step.processes
    fixes = _first((words.removeprefix(" with "), fits(way)) for words, way in ways[1:] if way.rows == step.rows)
    dividing = [n for n in _halves(micro, 1) if share % n == 0]
    fixes += _first((f"runtime.train_micro_batch: {n}", fits(cut(step, n, step.processes))) for n in dividing)
    if not fixes:
        fixes += _first((words.removeprefix(" with "), fits(way)) for words, way in ways[1:])
    if rule in cluster.TRAINING:
        unit = "gpus" if forecast.gpu else "processes"
        counts = [n for n in PROCESSES if n > step.processes and batch % n == 0]
        for strategy in ("zero2", "zero3"):
            if (step.lora or {}).get("quantization"):
                continue  # weights of 4 bits stay whole
            tried = [(step.processes, "")] if step.processes > 1 and strategy != step.strategy else []
            tried += [(n, f", {unit}: {n}") for n in counts]
            fixes += _first(
                (
                    f"resources.{rule}: {{strategy: {strategy}{words}}}{more}",
                    fits(cut(replace(way, strategy=strategy), way.rows // sides, n)),
                )
                for n, words in tried
                for more, way in ways
            )
        if step.lora is None:
            adapters = {"r": 16, "targets": ["all-linear"], "quantization": None}
            fixes += _first((f"{where}.lora: {{r: 16}}{more}", fits(replace(way, lora=adapters))) for more, way in ways)
        if step.strategy == "data" and (step.lora or {}).get("quantization") is None:
            adapters = {"r": 16, "targets": ["all-linear"], **(step.lora or {}), "quantization": "nf4"}
            fixes += _first(
                (f"{where}.lora: {{quantization: nf4}}{more}", fits(replace(way, lora=adapters))) for more, way in ways
            )
        fixes += _first(
            (f"{where}.max_length: {n}{more}", fits(replace(way, length=n)))
            for more, way in ways
            for n in _halves(step.length, SHORTEST)
        )
        if sum(memory.static(step).values()) + (memory.CONTEXT if step.gpu else memory.LIBRARIES) > room:
            return f"resources.{rule}.strategy", step.strategy, fixes
    if micro > 1:
        return "runtime.train_micro_batch", micro, fixes
    if not step.checkpointing:
        return "runtime.gradient_checkpointing", False, fixes
    return f"{where}.max_length", step.length, fixes


def _where(rule: str, own: Own) -> str:
    """The key of a training step's settings."""
    if "run" in own:
        return f"runs.{own['run']}.{rule.removeprefix('train_')}"
    block, wildcard = {"train_sft": ("sft", "sft"), "train_reward": ("rewards", "reward")}.get(rule, ("bases", "base"))
    return f"{block}.{own[wildcard]}"


def _first(tried: Iterable[tuple[str, bool]]) -> list[str]:
    """The first change that helps, in a list; an empty one where none does."""
    return next(([text] for text, helps in tried if helps), [])


def _halves(number: int, least: int) -> Iterator[int]:
    """Half of a number, half of that and so on, down to `least`."""
    number //= 2
    while number >= least:
        yield number
        number //= 2
