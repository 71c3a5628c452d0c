"""How far the engine that sampled was from the trainer, over all that a step trains on."""

from typing import Any

from scripts.lib.data import tables
from scripts.lib.data.schemas.engine_check import ENGINE_CHECK
from scripts.lib.stage import contract


def engine_gap(job: contract.Job[Any]) -> dict[str, float]:
    """{"engine_gap": mean of engine minus trainer, in nats per token} over the checks of all rollouts trained on.

    Empty if the trainer's own library sampled: then there are no checks.
    """
    paths = job.inputs["engine_checks"]
    if not paths:
        return {}
    table = tables.read_table(paths, ENGINE_CHECK)
    per_token = (table["engine_logprob"] - table["trainer_logprob"]) / table["tokens"].clip(lower_bound=1)
    return {"engine_gap": float(per_token.mean())}  # type: ignore[arg-type]
