"""Reference log-probabilities of preference pairs, computed once and used by every DPO step on them.

Sums in nats over the answer's tokens, including the end of turn, at temperature 1. A side that is, with its prompt,
longer than the model is made for has NaN.
"""

import math
import sys

from scripts.lib.data import shapes, tables
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
    # No step trains on a pair that is longer than the model is made for, so nothing is computed beyond that.
    longest = shapes.positions(model.config.to_dict())
    within = [i for i, each in enumerate(sequences) if longest is None or sum(map(len, each)) <= longest]
    sums = dict.fromkeys(range(len(sequences)), math.nan)
    sums |= zip(within, scoring.logprobs(job, model, tokenizer, [sequences[i] for i in within], device), strict=True)
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
    beyond = len(sequences) - len(within)
    job.counts = {"rows_in": len(rows), "rows_out": len(table), "sides_beyond_positions": beyond}
    job.metrics = {}
    for side in ("chosen_logprob", "rejected_logprob"):
        known = [row[side] for row in table if not math.isnan(row[side])]
        job.metrics[side] = sum(known) / max(1, len(known))
    tables.write_table(job.output, table, REFERENCE, ("pair_id",))
    job.note = f"{len(table)} pairs"


def main(argv: list[str] | None = None) -> int:
    """Command line; see `--help`."""
    return contract.execute("score_reference", run, ScoreReference, ("scorer", "pairs"), argv)


if __name__ == "__main__":
    sys.exit(main())
