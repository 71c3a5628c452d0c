"""Log-probabilities of a policy's responses under another policy, for KL and for checks of the engine.

One row per (prompt_id, k): the sum over the response's tokens, in nats, at temperature 1.
"""

import sys

from scripts.lib import schemas, stage


def run(job: stage.Job) -> None:
    """Score every response of one shard of rollouts."""
    from scripts.lib import models

    device = models.prepare(job.runtime)
    rows = schemas.read_table(job.input("rollouts"), schemas.ROLLOUTS).to_dicts()
    tokenizer = models.load_tokenizer(job.input("scorer"))
    model = models.load_policy(job.input("scorer"), job.settings["dtype"], device).eval()
    lengths = [len(row["prompt_ids"]) + len(row["token_ids"]) for row in rows]
    sums: list[float] = [0.0] * len(rows)
    done = 0
    for batch in models.batches_by_length(lengths, job.runtime["score_tokens"]):
        sequences = [(rows[i]["prompt_ids"], rows[i]["token_ids"]) for i in batch]
        for i, value in zip(batch, models.token_logprobs(model, sequences, tokenizer.pad_token_id or 0, device)):
            sums[i] = value
        done += len(batch)
        stage.progress(f"{done}/{len(rows)} responses scored")
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
