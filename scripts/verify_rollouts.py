"""Rewards of a policy's responses by a rule that reads the prompt's metadata; no model, no GPU."""

import json
import sys

from scripts.lib import schemas, stage, world
from scripts.lib.artifact import canonical_json
from scripts.lib.errors import InputError


def run(job: stage.Job) -> None:
    """Score every response of one shard of rollouts by the verifier named in settings."""
    rows = schemas.read_table(job.input("rollouts"), schemas.ROLLOUTS).to_dicts()
    table = []
    for row in rows:
        if not row["metadata"]:
            raise InputError(
                f"{job.input('rollouts')}: prompt {row['prompt_id']} has no metadata for the verifier "
                f"{job.settings['verifier']!r}.\nHint: the world's verifier scores the world's prompts only."
            )
        reward, values = world.gold(json.loads(row["metadata"]), row["response"])
        table.append(
            {"prompt_id": row["prompt_id"], "k": row["k"], "reward": reward, "objectives": canonical_json(values)}
        )
    job.counts = {"rows_in": len(rows), "rows_out": len(table)}
    job.metrics = {"mean": sum(row["reward"] for row in table) / max(1, len(table))}
    schemas.write_table(job.output, table, schemas.REWARDS, ("prompt_id", "k"))
    job.note = f"{len(table)} responses, mean {job.metrics['mean']:.3f}"


def main(argv: list[str] | None = None) -> int:
    """Command line; see `--help`."""
    return stage.execute("verify_rollouts", run, ("rollouts",), argv)


if __name__ == "__main__":
    sys.exit(main())
