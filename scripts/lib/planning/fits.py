"""Steps that cannot fit into the memory there is: complaints, with the changes that would make them fit. No torch."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from scripts.lib.kinds.trainer import Lora
from scripts.lib.planning import cluster, memory, model_shape
from scripts.lib.planning.card import Wildcards
from scripts.lib.planning.cards import CARDS
from scripts.lib.planning.forecast import Forecast, computation, in_words, size
from scripts.lib.planning.memory import GIB, Parts, Training
from scripts.lib.planning.plan import Plan
from scripts.lib.stage.errors import Complaints

PROCESSES, PARALLEL, SHORTEST, HINTS = (2, 4, 8, 16, 32, 64), (2, 4, 8, 16), 256, 5
CHECKPOINTING, SCORE_TOKENS = "runtime.gradient_checkpointing: true", "runtime.score_tokens"


def check(plan: Plan, complaints: Complaints, mend: bool = True) -> None:
    """Complain of a shape that is not its model's, and of every step that does not fit its device or its node.

    Nothing is compared unless `forecast.device_memory_gib` says what a device has. With `mend`, changes that would
    make a step fit are searched for, which may take seconds, and named as hints.
    """
    for name, block in plan.config.bases.items():
        model_shape.check(f"bases.{name}", block, Path(plan.base(name)), complaints)
    if plan.config.forecast.device_memory_gib is None:
        return
    forecast, seen = Forecast(plan), set[str]()
    for path in plan.artifacts(*plan.asked("all")):
        rule, wildcards = plan.maker(path)
        if CARDS[rule].compute is None or wildcards.get("shard", "0") != "0":
            continue
        step = forecast.job(path)
        alike = f"{rule} {step.parts if step else None}"
        if step is None or step.parts is None or step.host is None or alike in seen:
            continue
        seen.add(alike)
        room = _room(forecast, rule, wildcards)
        if sum(step.parts.values()) > room:
            unmended = (
                "forecast.device_memory_gib",
                room / GIB,
                ["`forecast.refuse: true` names changes that would do"],
            )
            key, value, fixes = _fixes(forecast, rule, wildcards, room) if mend else unmended
            name = step.group.removeprefix(plan.root + "/")
            text = f"{rule} of {name} needs {in_words(step.parts)} of {size(room)} that there are"
            complaints.add(
                key, value, text, ("; or ".join(fixes[:HINTS]) or "a smaller model or a larger device") + "."
            )
        elif step.host > (asked := cluster.needs(plan.config, rule).mem_mb) * 2**20 and rule not in seen:
            seen.add(rule)
            needed = -(-step.host // 2**20)
            text = f"{rule} of {step.group.removeprefix(plan.root + '/')} takes {needed} MiB of a node"
            complaints.add(f"resources.{rule}.mem_mb", asked, text, f"{needed} or more, or fewer processes on a node.")


def _room(forecast: Forecast, rule: str, wildcards: Wildcards) -> float:
    """Bytes that a process of a step may take: a GPU's, vLLM's share of it, or a process's share of the machine."""
    room = (forecast.expected.device_memory_gib or 0) * GIB
    if not forecast.gpu:
        return room / cluster.needs(forecast.config, rule).processes
    return room * forecast.runtime.vllm_memory if _by_vllm(forecast, rule, wildcards) else room


def _by_vllm(forecast: Forecast, rule: str, wildcards: Wildcards) -> bool:
    return computation(rule).kind == "sample" and forecast.config.samplings[wildcards["sampling"]].engine == "vllm"


def _fixes(forecast: Forecast, rule: str, wildcards: Wildcards, room: float) -> tuple[str, Any, list[str]]:
    """(key to change, its value, changes that make a step fit)."""
    shape = forecast.shape(computation(rule).model(forecast.plan, wildcards))
    if shape is None:
        raise ValueError(f"{rule}: no shape, so nothing was forecast")
    if computation(rule).kind == "train":
        return _training(forecast, rule, wildcards, shape, room)

    def fits(parts: Parts) -> bool:
        return sum(parts.values()) <= room

    if _by_vllm(forecast, rule, wildcards):
        key, value = "runtime.vllm_tensor_parallel", forecast.runtime.vllm_tensor_parallel
        wider = [n for n in PARALLEL if n > value and shape.heads % n == 0]
        return key, value, _first((f"{key}: {n}", fits(forecast.sampling(wildcards, shape, 1, n))) for n in wider)
    if computation(rule).kind == "sample":
        rows, tokens = forecast.runtime.generate_batch, forecast.runtime.score_tokens
        if fits(forecast.sampling(wildcards, shape, rows, 1, tokens=0)):  # it is the recording of log-probabilities
            smaller = ((n, forecast.sampling(wildcards, shape, rows, 1, n)) for n in _halves(tokens, 1))
            return SCORE_TOKENS, tokens, _first((f"{SCORE_TOKENS}: {n}", fits(parts)) for n, parts in smaller)
        key, value = "runtime.generate_batch", rows
        fixes = _first((f"{key}: {n}", fits(forecast.sampling(wildcards, shape, n, 1))) for n in _halves(value, 1))
        if forecast.gpu:
            length, share = computation(rule).longest(forecast.plan, wildcards), forecast.runtime.vllm_memory
            spread = {n: memory.vllm(shape, length, forecast.config.dtype, n) for n in (1, *PARALLEL)}
            where = f"samplings.{wildcards['sampling']}.engine: vllm with runtime.vllm_tensor_parallel"
            fixes += _first(
                (f"{where}: {n}", sum(parts.values()) <= share * room)
                for n, parts in spread.items()
                if shape.heads % n == 0
            )
        return key, value, fixes
    key, value = SCORE_TOKENS, forecast.runtime.score_tokens
    smaller = ((n, forecast.scoring(rule, wildcards, shape, n)) for n in _halves(value, 1))
    return key, value, _first((f"{key}: {n}", fits(parts)) for n, parts in smaller)


def _training(
    forecast: Forecast, rule: str, wildcards: Wildcards, shape: model_shape.Shape, room: float
) -> tuple[str, Any, list[str]]:
    """`_fixes` of a training step: each change alone, else with checkpointing, else row by row as well."""
    step, compute = forecast.training(rule, wildcards, shape), computation(rule)
    sides, batch = compute.sides, forecast.trainer(rule, wildcards).batch_size
    micro, where = step.rows // sides, compute.trainer_key(wildcards)

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
    quantization = step.lora.quantization if step.lora else None
    if compute.spreads:
        unit = "gpus" if forecast.gpu else "processes"
        counts = [n for n in PROCESSES if n > step.processes and batch % n == 0]
        for sharding in ("zero2", "zero3"):
            if quantization:
                continue  # weights of 4 bits stay whole
            tried = [(step.processes, "")] if step.processes > 1 and sharding != step.sharding else []
            tried += [(n, f", {unit}: {n}") for n in counts]
            fixes += _first(
                (
                    f"resources.{rule}: {{sharding: {sharding}{words}}}{more}",
                    fits(cut(replace(way, sharding=sharding), way.rows // sides, n)),
                )
                for n, words in tried
                for more, way in ways
            )
        if step.lora is None:
            adapters = Lora(r=16)
            fixes += _first((f"{where}.lora: {{r: 16}}{more}", fits(replace(way, lora=adapters))) for more, way in ways)
        if step.sharding == "data" and quantization is None:
            adapters = (step.lora or Lora(r=16)).model_copy(update={"quantization": "nf4"})
            fixes += _first(
                (f"{where}.lora: {{quantization: nf4}}{more}", fits(replace(way, lora=adapters))) for more, way in ways
            )
        fixes += _first(
            (f"{where}.max_length: {n}{more}", fits(replace(way, length=n)))
            for more, way in ways
            for n in _halves(step.length, SHORTEST)
        )
        if sum(memory.static(step).values()) + (memory.CONTEXT if step.gpu else memory.LIBRARIES) > room:
            return f"resources.{rule}.sharding", step.sharding, fixes
    if micro > 1:
        return "runtime.train_micro_batch", micro, fixes
    if not step.checkpointing:
        return "runtime.gradient_checkpointing", False, fixes
    return f"{where}.max_length", step.length, fixes


def _first(tried: Iterable[tuple[str, bool]]) -> list[str]:
    """The first change that helps, in a list; an empty one where none does."""
    return next(([text] for text, helps in tried if helps), [])


def _halves(number: int, least: int) -> Iterator[int]:
    """Half of a number, half of that and so on, down to `least`."""
    number //= 2
    while number >= least:
        yield number
        number //= 2
