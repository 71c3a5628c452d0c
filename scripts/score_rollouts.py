"""Rewards of a policy's responses by a trained model.

Every response is scored. Truncated ones are scored like any other and handled later, when pairs are built.
"""

import sys

from scripts.lib.data import rewards
from scripts.lib.kinds import families
from scripts.lib.kinds.rewards import ScoreRollouts
from scripts.lib.stage import contract


def run(job: contract.Job[ScoreRollouts]) -> None:
    """Score every response of one shard of rollouts by the labeller named in settings."""
    rewards.write(job, families.load("labels", job.settings.labeller).label)


def main(argv: list[str] | None = None) -> int:
    """Command line; see `--help`."""
    return contract.execute("score_rollouts", run, ScoreRollouts, ("model", "rollouts"), argv)


if __name__ == "__main__":
    sys.exit(main())
