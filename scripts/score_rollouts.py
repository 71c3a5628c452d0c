"""Rewards of a policy's responses by a trained model.

Every response is scored; a truncated one is scored like any other and set apart later, when pairs are built.
"""

import sys

from scripts.lib.data import rewards
from scripts.lib.stage import contract, families


def run(job: contract.Job) -> None:
    """Score every response of one shard of rollouts by the labeller named in settings."""
    rewards.write(job, families.load("labels", job.settings["labeller"]).label)


def main(argv: list[str] | None = None) -> int:
    """Command line; see `--help`."""
    return contract.execute("score_rollouts", run, ("model", "rollouts"), argv)


if __name__ == "__main__":
    sys.exit(main())
