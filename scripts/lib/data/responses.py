"""What stages that train share of responses: their rewards, and how far the engine was from the trainer."""

from typing import Any

import polars as pl

from scripts.lib.data import tables
from scripts.lib.data.schemas.engine_check import ENGINE_CHECK
from scripts.lib.data.schemas.rewards import REWARDS
from scripts.lib.data.schemas.rollouts import ROLLOUTS
from scripts.lib.stage import contract
from scripts.lib.stage.errors import InputError

# What a choice among responses does without: Python's lists of a table's tokens take ten times what the table does.
AT_LENGTH = ("messages", "metadata", "prompt_ids", "token_ids", "objectives")


def joined(job: contract.Job) -> pl.DataFrame:
    """Rollouts with their rewards, in order. Raises InputError if any (prompt_id, k) lacks its counterpart."""
    rollouts = tables.read_table(job.inputs["rollouts"], ROLLOUTS)
    rewards = tables.read_table(job.inputs["rewards"], REWARDS)
    for name, table in (("rollouts", rollouts), ("rewards", rewards)):
        if table.select("prompt_id", "k").is_duplicated().any():
            raise InputError(f"{name}: a (prompt_id, k) stands more than once.\nHint: a shard was given twice.")
    together = rollouts.join(rewards, on=["prompt_id", "k"], how="inner", maintain_order="left")
    if not (together.height == rollouts.height == rewards.height):
        raise InputError(
            f"{rollouts.height} rollouts and {rewards.height} rewards share {together.height} (prompt_id, k).\n"
            "Hint: the rewards belong to other rollouts; delete them and run Snakemake."
        )
    return together


def candidates(table: pl.DataFrame) -> list[dict[str, Any]]:
    """What a choice needs of each response, and `row`, its row in the table."""
    return table.drop(AT_LENGTH).with_row_index("row").to_dicts()


def engine_gap(job: contract.Job) -> dict[str, float]:
    """Mean of engine minus trainer, in nats per token, over the checks of all rollouts that a step trains on.

    Nothing where the trainer's own library has sampled.
    """
    paths = job.inputs["engine_checks"]
    if not paths:
        return {}
    table = tables.read_table(paths, ENGINE_CHECK)
    per_token = (table["engine_logprob"] - table["trainer_logprob"]) / table["tokens"].clip(lower_bound=1)
    return {"engine_gap": float(per_token.mean())}  # type: ignore[arg-type]
