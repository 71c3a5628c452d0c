"""The rows of one file that others publish: JSON lines, JSON or parquet, plain or gzip.

The files are untrusted text: nothing is evaluated or unpickled.
"""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path

import polars as pl

from scripts.lib.stage import parquet
from scripts.lib.stage.errors import InputError

SUFFIXES = (".jsonl", ".json", ".parquet")


def rows(path: Path) -> Iterator[object]:
    """The rows of one file in order; a line that is not JSON gives None. Blank lines are no rows.

    Takes .jsonl, .json (lines, or one array) and .parquet, each plain or gzip (recognised by its bytes). Raises
    InputError for another name and for a file that cannot be read at all.
    """
    kind = Path(path.name.removesuffix(".gz")).suffix
    if kind not in SUFFIXES:
        raise InputError(
            f"{path}: the name must end in one of {', '.join(SUFFIXES)}, with or without .gz\n"
            "Hint: let `pattern` match the data files only."
        )
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
        if kind == ".parquet":
            yield from _parquet_rows(path, zipped)
        else:
            yield from _json_rows(path, zipped, kind)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: {error}\nHint: the file is damaged or cut short; fetch it again.") from error


def _json_rows(path: Path, zipped: bool, kind: str) -> Iterator[object]:
    with gzip.open(path) if zipped else path.open("rb") as file:
        # Iterating over bytes splits at "\n" only: str.splitlines would also split inside strings, at U+2028.
        lines = iter(file)
        if kind == ".json":
            whole = file.read()
            if whole.lstrip().startswith(b"["):
                array = _json(whole)
                if not isinstance(array, list):
                    raise InputError(f"{path}: no JSON array, though it begins with '['\nHint: mend it, or use lines.")
                yield from array
                return
            lines = iter(whole.split(b"\n"))
        for line in lines:
            if line.strip():
                yield _json(line)


def _json(data: bytes) -> object:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _parquet_rows(path: Path, zipped: bool) -> Iterator[object]:
    try:
        table = parquet.read(gzip.decompress(path.read_bytes()) if zipped else path)
    except pl.exceptions.PolarsError as error:
        raise InputError(f"{path}: {error}\nHint: the file is damaged or no parquet; fetch it again.") from error
    yield from table.iter_rows(named=True)
