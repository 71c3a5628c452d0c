"""Responses with their rewards, as pairs and RAFT need them."""

from typing import Any

from scripts.lib import schemas, stage
from scripts.lib.errors import InputError


def joined(job: stage.Job) -> list[dict[str, Any]]:
    """Rollouts with their rewards, in order. Raises InputError if any (prompt_id, k) lacks its counterpart."""
    rollouts = schemas.read_table(job.inputs["rollouts"], schemas.ROLLOUTS)
    rewards = schemas.read_table(job.inputs["rewards"], schemas.REWARDS)
    for name, table in (("rollouts", rollouts), ("rewards", rewards)):
        if table.select("prompt_id", "k").is_duplicated().any():
            raise InputError(f"{name}: a (prompt_id, k) stands more than once.\nHint: a shard was given twice.")
    together = rollouts.join(rewards, on=["prompt_id", "k"], how="inner", maintain_order="left")
    if not (together.height == rollouts.height == rewards.height):
        raise InputError(
            f"{rollouts.height} rollouts and {rewards.height} rewards share {together.height} (prompt_id, k).\n"
            "Hint: the rewards belong to other rollouts; delete them and run Snakemake."
        )
    return together.to_dicts()
