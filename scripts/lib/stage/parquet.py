"""Reading one parquet file. No other code does, because polars would take a path for a pattern."""

from pathlib import Path

import polars as pl


def read(source: Path | bytes) -> pl.DataFrame:
    """The table in one file, or in its bytes. Only that file: `run[12]/t.parquet` must not read `run1/t.parquet`.

    Raises OSError or polars.exceptions.PolarsError for a file that cannot be read.
    """
    return pl.read_parquet(source, glob=False, hive_partitioning=False)
