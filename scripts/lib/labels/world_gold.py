"""The score of the project's own world, from the requests in a prompt's metadata; no training sees it."""

import json
from typing import Any

from scripts.lib.data import world
from scripts.lib.data.rewards import Label
from scripts.lib.stage.contract import Job
from scripts.lib.stage.errors import InputError


def label(job: Job, rows: list[dict[str, Any]]) -> list[Label]:
    """Rewards in [0, 1], and their value by request, of rows of rollouts.

    Raises InputError for a prompt that is not the world's.
    """
    found = []
    for row in rows:
        if not row["metadata"]:
            raise InputError(
                f"{job.input('rollouts')}: prompt {row['prompt_id']} has no metadata for the verifier 'world_gold'.\n"
                "Hint: the world's verifier scores the world's prompts only."
            )
        found.append(world.gold(json.loads(row["metadata"]), row["response"]))
    return found
