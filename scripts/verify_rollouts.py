"""Rewards of a policy's responses by a rule that reads the prompt's metadata; no model, no GPU."""

import sys

from scripts.lib.data import rewards
from scripts.lib.stage import contract, families


def run(job: contract.Job) -> None:
    """Score every response of one shard of rollouts by the verifier named in settings."""
    rewards.write(job, families.load("labels", job.settings["verifier"]).label)


def main(argv: list[str] | None = None) -> int:
    """Command line; see `--help`."""
    return contract.execute("verify_rollouts", run, ("rollouts",), argv)


if __name__ == "__main__":
    sys.exit(main())
