"""Sampled responses with their rewards, as pairs and RAFT choose among them."""

from typing import Any

import polars as pl

from scripts.lib.data import tables
from scripts.lib.data.rewards import not_finite
from scripts.lib.data.schemas.rewards import REWARDS
from scripts.lib.data.schemas.rollouts import ROLLOUTS
from scripts.lib.stage import contract
from scripts.lib.stage.errors import InputError

# Columns that selection does not need: token lists take ten times as much memory in Python as in a table.
AT_LENGTH = ("messages", "metadata", "prompt_ids", "token_ids", "objectives")


def joined(job: contract.Job[Any]) -> pl.DataFrame:
    """Rollouts with their rewards, in order.

    Raises InputError if a (prompt_id, k) is not in both, once each, and for a reward that is no finite number.
    """
    rollouts = tables.read_table(job.inputs["rollouts"], ROLLOUTS)
    rewards = tables.read_table(job.inputs["rewards"], REWARDS)
    for name, table in (("rollouts", rollouts), ("rewards", rewards)):
        if table.select("prompt_id", "k").is_duplicated().any():
            raise InputError(f"{name}: a (prompt_id, k) appears more than once.\nHint: pass each shard only once.")
    together = rollouts.join(rewards, on=["prompt_id", "k"], how="inner", maintain_order="left")
    if not (together.height == rollouts.height == rewards.height):
        raise InputError(
            f"{rollouts.height} rollouts and {rewards.height} rewards share {together.height} (prompt_id, k).\n"
            "Hint: the rewards belong to other rollouts; delete them and run Snakemake."
        )
    if (endless := together.filter(~pl.col("reward").is_finite())).height:
        row = endless.row(0, named=True)
        raise not_finite(f"rewards: prompt {row['prompt_id']}, response {row['k']}", "reward", row["reward"])
    return together


def unfit(row: dict[str, Any]) -> str:
    """Why a response is not one to learn to give: `truncated` or `empty`, a response without words; "" if it is one."""
    if row["finish_reason"] != "stop":
        return "truncated"
    return "" if row["response"].strip() else "empty"


def candidates(table: pl.DataFrame) -> list[dict[str, Any]]:
    """The columns of each response that selection needs, and `row`, its index in the table."""
    return table.drop(AT_LENGTH).with_row_index("row").to_dicts()
