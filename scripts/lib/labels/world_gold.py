"""The gold score of the project's own world, from the requests in a prompt's metadata; training never sees it."""

import json
from typing import Any

from scripts.lib.data import world
from scripts.lib.data.rewards import Label
from scripts.lib.stage.contract import Job
from scripts.lib.stage.errors import InputError


def label(job: Job[Any], rows: list[dict[str, Any]]) -> list[Label]:
    """Rewards in [0, 1] of rollout rows, each with its value per request.

    Raises InputError for a prompt that does not come from the world.
    """
    labels = []
    for row in rows:
        if not row["metadata"]:
            raise InputError(
                f"{job.input('rollouts')}: prompt {row['prompt_id']} has no metadata for the verifier 'world_gold'.\n"
                "Hint: this verifier scores only prompts that the world made."
            )
        labels.append(world.gold(json.loads(row["metadata"]), row["response"]))
    return labels
