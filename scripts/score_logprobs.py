"""Log-probabilities of a policy's responses under another policy, for KL and for checks of the engine.

One row per (prompt_id, k): the sum over the response's tokens, in nats, at temperature 1.
"""

import sys

from scripts.lib import schemas, stage


def run(job: stage.Job) -> None:
    """Score every response of one shard of rollouts."""
    from scripts.lib import models, scoring

    device = models.prepare(job.runtime)
    rows = schemas.read_table(job.input("rollouts"), schemas.ROLLOUTS).to_dicts()
    tokenizer = models.load_tokenizer(job.input("scorer"))
    kernel = models.attention(job, device)
    model = models.load_policy(job.input("scorer"), job.settings["dtype"], device, kernel).eval()
    sequences = [(row["prompt_ids"], row["token_ids"]) for row in rows]
    sums = scoring.logprobs(job, model, tokenizer, sequences, device)
    table = [
        {"prompt_id": row["prompt_id"], "k": row["k"], "logprob": value, "tokens": len(row["token_ids"])}
        for row, value in zip(rows, sums)
    ]
    job.counts = {"rows_in": len(rows), "rows_out": len(table)}
    schemas.write_table(job.output, table, schemas.LOGPROBS, ("prompt_id", "k"))
    job.note = f"{len(table)} responses"


def main(argv: list[str] | None = None) -> int:
    """Command line; see `--help`."""
    return stage.execute("score_logprobs", run, ("scorer", "rollouts"), argv)


if __name__ == "__main__":
    sys.exit(main())
