"""Rows that a step has finished, kept in its work folder, so that a step that is killed loses minutes, not hours.

Rows are named by their index in the step's own order. Work is cut at the same places whether or not a step was
interrupted, so the rows that are left are computed in the same batches, and come out with the same bytes.
"""

import time
from pathlib import Path
from typing import Any

import polars as pl

from scripts.lib.stage import artifact, parquet
from scripts.lib.stage.progress import progress


class Chunks:
    """Finished rows in memory and on disk. `rows` maps an index to the row's values; every value has one type."""

    def __init__(self, folder: Path, minutes: float) -> None:
        """Read what an interrupted step left in `folder`; write new rows there every so many minutes."""
        self.folder, self.seconds = folder, 60 * minutes
        self.rows: dict[int, dict[str, Any]] = {}
        self._unwritten: list[dict[str, Any]] = []
        for file in sorted(folder.glob("*.parquet")):
            try:
                rows = parquet.read(file).to_dicts()
            except (OSError, pl.exceptions.PolarsError) as error:
                progress(f"{file}: {error}; its rows are made again")
                file.unlink()
                continue
            self.rows |= {row.pop("index"): row for row in rows}
        if self.rows:
            progress(f"{len(self.rows)} rows were finished before")
        self._written = time.monotonic()

    def add(self, rows: dict[int, dict[str, Any]]) -> None:
        """Keep finished rows; on disk once enough time has passed since the last write."""
        self.rows |= rows
        self._unwritten += [{"index": index, **row} for index, row in rows.items()]
        if time.monotonic() - self._written >= self.seconds:
            self.flush()

    def flush(self) -> None:
        """Write what is only in memory so far."""
        if self._unwritten:
            with artifact.atomic_write(self.folder / f"{len(self.rows):010}.parquet") as temporary:
                pl.DataFrame(self._unwritten, infer_schema_length=None).write_parquet(temporary)
        self._unwritten, self._written = [], time.monotonic()
