"""What a labeller says of responses, as a table of rewards."""

from collections.abc import Callable
from typing import Any

from scripts.lib.data import tables
from scripts.lib.data.schemas.rewards import REWARDS
from scripts.lib.data.schemas.rollouts import ROLLOUTS
from scripts.lib.stage.artifact import canonical_json
from scripts.lib.stage.contract import Job

# A reward, and its value by objective where the labeller has several.
Label = tuple[float, dict[str, float]]
Labeller = Callable[[Job[Any], list[dict[str, Any]]], list[Label]]


def write(job: Job[Any], label: Labeller) -> None:
    """Label every response of one shard of rollouts: as many rows out as in, in the same order."""
    rows = tables.read_table(job.input("rollouts"), ROLLOUTS).to_dicts()
    labels = label(job, rows)
    table = [
        {
            "prompt_id": row["prompt_id"],
            "k": row["k"],
            "reward": reward,
            "objectives": canonical_json(objectives) if objectives else "",
        }
        for row, (reward, objectives) in zip(rows, labels, strict=True)
    ]
    job.counts |= {"rows_in": len(rows), "rows_out": len(table)}
    job.metrics = {"mean": sum(row["reward"] for row in table) / max(1, len(table))}
    tables.write_table(job.output, table, REWARDS, ("prompt_id", "k"))
    job.note = f"{len(table)} responses, mean reward {job.metrics['mean']:.3f}"
