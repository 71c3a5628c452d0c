"""Reading and writing tables. No other code does; the columns of each are in a file of scripts/lib/data/schemas/.

Messages are chat turns `{role, content}`. A `prompt_id` is the digest of the canonical messages, so the same
prompt has the same id wherever it appears. `k` numbers the responses to one prompt from 0. Rewards are in the
labeller's own unit, log-probabilities in nats, lengths in tokens unless a name says characters.
"""

from pathlib import Path
from typing import Any

import polars as pl

from scripts.lib.stage import parquet
from scripts.lib.stage.artifact import atomic_write, canonical_json
from scripts.lib.stage.digest import text_sha256
from scripts.lib.stage.errors import InputError

Schema = dict[str, Any]


def prompt_id(messages: list[dict[str, str]]) -> str:
    """16 hex digits that identify a prompt: the digest of its messages' roles and contents."""
    turns = [{"role": turn["role"], "content": turn["content"]} for turn in messages]
    return text_sha256(canonical_json(turns))[:16]


def write_table(path: Path, rows: list[dict[str, Any]] | pl.DataFrame, schema: Schema, key: tuple[str, ...]) -> int:
    """Write a table with exactly this schema, atomically, and return its number of rows.

    Raises InputError if the rows do not fit the schema or if `key` is not unique.
    """
    hint = "Hint: a stage wrote rows that scripts/lib/data/tables.py does not declare; this is a bug in the stage."
    for row in [dict.fromkeys(rows.columns)] if isinstance(rows, pl.DataFrame) else rows:
        if row.keys() != schema.keys():
            raise InputError(f"{path}: a row has columns {sorted(row)}, expected {sorted(schema)}\n{hint}")
    try:
        if isinstance(rows, pl.DataFrame):
            table = rows.select(list(schema))
            if table.schema != pl.Schema(schema):
                raise TypeError(f"columns are {dict(table.schema)}")
        else:
            table = pl.DataFrame(rows, schema=schema, strict=True, orient="row")
            check_integers(rows, schema)
    except (TypeError, pl.exceptions.PolarsError) as error:
        raise InputError(f"{path}: rows do not fit the schema {schema}: {error}\n{hint}") from error
    if table.select(key).is_duplicated().any():
        double = table.filter(table.select(key).is_duplicated()).select(key).row(0)
        raise InputError(f"{path}: {key} = {double} appears more than once\nHint: each {key} must be unique.")
    with atomic_write(path) as temporary:
        table.write_parquet(temporary, compression="zstd")
    return table.height


def check_integers(rows: list[dict[str, Any]], schema: Schema) -> None:
    """Raise TypeError for a fraction in an integer column, which polars would silently truncate."""
    for column, kind in schema.items():
        if kind in (pl.Int32, pl.Int64):
            for row in rows:
                if isinstance(row[column], float) and not row[column].is_integer():
                    raise TypeError(f"{column} = {row[column]} is not an integer")


def read_table(paths: Path | list[Path], schema: Schema) -> pl.DataFrame:
    """Read one table, or several parts of one table in order.

    Raises InputError, naming the file, if it cannot be read or its columns differ from the schema.
    """
    parts = []
    for path in [paths] if isinstance(paths, Path) else paths:
        try:
            part = parquet.read(path)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise InputError(f"{path}: {error}\nHint: delete it and run Snakemake, which rebuilds it.") from error
        if part.schema != pl.Schema(schema):
            raise InputError(
                f"{path}: columns are {dict(part.schema)}, expected {schema}\n"
                "Hint: an older version of the project wrote it; delete it and run Snakemake."
            )
        parts.append(part)
    return pl.concat(parts) if parts else pl.DataFrame(schema=schema)
