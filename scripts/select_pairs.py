"""Curated preferences as a table of training pairs: all of them, or the first `size` in digest order.

The annotator's orientation is kept. Token ids stay empty: stages that read the pairs tokenise them.
"""

import sys

from scripts.lib.data import tables
from scripts.lib.data.schemas.pairs import PAIRS
from scripts.lib.data.schemas.preferences import PREFERENCES
from scripts.lib.kinds.pairing import SelectPairs
from scripts.lib.stage import contract
from scripts.lib.stage.errors import InputError


def run(job: contract.Job[SelectPairs]) -> None:
    """Select the pairs of one data set."""
    preferences = tables.read_table(job.input("dataset"), PREFERENCES).to_dicts()
    kept, small, minimum = [], 0, job.settings.minimum_margin
    for row in preferences:
        if row["margin"] is not None and 0 < minimum and row["margin"] <= minimum:
            small += 1
        else:
            kept.append(row)
    if not kept:
        raise InputError(
            f"no pairs: all {len(preferences)} margins are at most minimum_margin = {minimum}.\n"
            "Hint: lower minimum_margin of the pairing."
        )
    size = job.settings.size
    selected = sorted(kept, key=lambda row: str(row["pair_id"]))[:size]
    table = [{key: row.get(key) for key in PAIRS} | {"margin": row["margin"]} for row in selected]
    job.counts = {
        "rows_in": len(preferences),
        "dropped_small_margin": small,
        "dropped_beyond_size": len(kept) - len(selected),
        "pairs_out": len(table),
    }
    tables.write_table(job.output, table, PAIRS, ("pair_id",))
    job.note = f"{len(table)} of {len(preferences)} curated pairs"


def main(argv: list[str] | None = None) -> int:
    """Command line; see `--help`."""
    return contract.execute("select_pairs", run, SelectPairs, ("dataset",), argv)


if __name__ == "__main__":
    sys.exit(main())
