"""Rewards of a policy's responses by a rule that uses the prompt's metadata; no model, no GPU."""

import sys

from scripts.lib.data import rewards
from scripts.lib.kinds import families
from scripts.lib.kinds.rewards import VerifyRollouts
from scripts.lib.stage import contract


def run(job: contract.Job[VerifyRollouts]) -> None:
    """Score every response of one shard of rollouts by the verifier named in settings."""
    rewards.write(job, families.load("labels", job.settings.verifier).label)


def main(argv: list[str] | None = None) -> int:
    """Command line; see `--help`."""
    return contract.execute("verify_rollouts", run, VerifyRollouts, ("rollouts",), argv)


if __name__ == "__main__":
    sys.exit(main())
