"""Log-probabilities of a policy's responses under another policy, from which KL is computed.

One row per (prompt_id, k): the sum over the response's tokens, in nats, at temperature 1.
"""

import sys

from scripts.lib.data import tables
from scripts.lib.data.schemas.logprobs import LOGPROBS
from scripts.lib.data.schemas.rollouts import ROLLOUTS
from scripts.lib.kinds.sampling import ScoreLogprobs
from scripts.lib.stage import contract


def run(job: contract.Job[ScoreLogprobs]) -> None:
    """Score every response of one shard of rollouts."""
    from scripts.lib.models import loading, scoring

    device = loading.prepare(job.runtime)
    rows = tables.read_table(job.input("rollouts"), ROLLOUTS).to_dicts()
    tokenizer = loading.load_tokenizer(job.input("scorer"))
    kernel = loading.attention(job, device)
    model = loading.load_policy(job.input("scorer"), job.settings.dtype, device, kernel).eval()
    sequences = [(row["prompt_ids"], row["token_ids"]) for row in rows]
    sums = scoring.logprobs(job, model, tokenizer, sequences, device)
    table = [
        {"prompt_id": row["prompt_id"], "k": row["k"], "logprob": value, "tokens": len(row["token_ids"])}
        for row, value in zip(rows, sums)
    ]
    job.counts = {"rows_in": len(rows), "rows_out": len(table)}
    tables.write_table(job.output, table, LOGPROBS, ("prompt_id", "k"))
    job.note = f"{len(table)} responses"


def main(argv: list[str] | None = None) -> int:
    """Command line; see `--help`."""
    return contract.execute("score_logprobs", run, ScoreLogprobs, ("scorer", "rollouts"), argv)


if __name__ == "__main__":
    sys.exit(main())
