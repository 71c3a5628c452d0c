"""What a labeller says of responses, as a table of rewards."""

import math
from collections.abc import Callable
from typing import Any

from scripts.lib.data import tables
from scripts.lib.data.schemas.rewards import REWARDS
from scripts.lib.data.schemas.rollouts import ROLLOUTS
from scripts.lib.stage.artifact import canonical_json
from scripts.lib.stage.contract import Job
from scripts.lib.stage.errors import InputError

# A reward, and its value by objective where the labeller has several.
Label = tuple[float, dict[str, float]]
Labeller = Callable[[Job[Any], list[dict[str, Any]]], list[Label]]


def not_finite(where: str, name: str, value: float) -> InputError:
    """The error for a reward, or one of a labeller's objectives, that is no finite number."""
    return InputError(
        f"{where}: {name} is {value}, must be a finite number.\n"
        "Hint: the reward model has diverged if its held-out loss is not finite either: lower its learning rate; a "
        "rule must give every response a number."
    )


def write(job: Job[Any], label: Labeller) -> None:
    """Label every response of one shard of rollouts: as many rows out as in, in the same order.

    Raises InputError for a reward that is NaN or infinite: it compares with nothing, so no response would be the best.
    """
    rows = tables.read_table(job.input("rollouts"), ROLLOUTS).to_dicts()
    labels = label(job, rows)
    for row, (reward, objectives) in zip(rows, labels, strict=True):
        for name, value in {"reward": reward, **objectives}.items():
            if not math.isfinite(value):
                raise not_finite(
                    f"{job.input('rollouts')}: prompt {row['prompt_id']}, response {row['k']}", name, value
                )
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
