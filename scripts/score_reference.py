"""Reference log-probabilities of preference pairs, computed once and used by every DPO step on them.

Sums in nats over the answer's tokens, including the end of turn, at temperature 1.
"""

import sys

from scripts.lib.data import tables
from scripts.lib.data.schemas.pairs import PAIRS
from scripts.lib.data.schemas.reference import REFERENCE
from scripts.lib.kinds.pairing import ScoreReference
from scripts.lib.stage import contract


def run(job: contract.Job[ScoreReference]) -> None:
    """Score both sides of every pair under the reference policy."""
    from scripts.lib.models import chat, loading, scoring

    device = loading.prepare(job.runtime)
    rows = tables.read_table(job.input("pairs"), PAIRS).to_dicts()
    tokenizer = loading.load_tokenizer(job.input("scorer"))
    kernel = loading.attention(job, device)
    model = loading.load_policy(
        job.input("scorer"), job.settings.dtype, device, kernel, job.settings.quantization
    ).eval()
    # Sequence 2i is the chosen side of pair i, sequence 2i + 1 the rejected side.
    sequences: list[tuple[list[int], list[int]]] = []
    for row in rows:
        prompt, chosen, rejected = chat.pair_ids(tokenizer, row)
        sequences += [(prompt, chosen), (prompt, rejected)]
    sums = scoring.logprobs(job, model, tokenizer, sequences, device)
    table = [
        {
            "pair_id": row["pair_id"],
            "chosen_logprob": sums[2 * i],
            "rejected_logprob": sums[2 * i + 1],
            "chosen_tokens": len(sequences[2 * i][1]),
            "rejected_tokens": len(sequences[2 * i + 1][1]),
        }
        for i, row in enumerate(rows)
    ]
    job.counts = {"rows_in": len(rows), "rows_out": len(table)}
    job.metrics = {
        "chosen_logprob": sum(row["chosen_logprob"] for row in table) / max(1, len(table)),
        "rejected_logprob": sum(row["rejected_logprob"] for row in table) / max(1, len(table)),
    }
    tables.write_table(job.output, table, REFERENCE, ("pair_id",))
    job.note = f"{len(table)} pairs"


def main(argv: list[str] | None = None) -> int:
    """Command line; see `--help`."""
    return contract.execute("score_reference", run, ScoreReference, ("scorer", "pairs"), argv)


if __name__ == "__main__":
    sys.exit(main())
