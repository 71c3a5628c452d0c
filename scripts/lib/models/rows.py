"""Training rows: each process tokenises its share once; every process reads all of them from the step's work folder.

Rendering and tokenising millions of conversations takes one core an hour while GPUs wait. So the processes share the
work, and a step that resumes finds it done. The files are memory-mapped: a node holds one copy, however many
processes it runs.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset
from datasets.table import MemoryMappedTable, concat_tables
from trl import pack_dataset

from scripts.lib.stage import artifact, contract, ranks
from scripts.lib.stage.throughput import Throughput

ROWS_AT_ONCE = 10_000

Row = dict[str, Any]


def dataset(
    job: contract.Job[Any], items: Any, rows_of: Callable[[Any], Iterable[Row]], fits: Callable[[Row], bool]
) -> tuple[Dataset, int]:
    """(the rows that fit, in the order of their items, with token lists in int32; number of the others).

    `items` has a length and slices (a table, a list); `rows_of` gives one row for each item of a slice.
    All processes must call it together.
    """
    count, rank = ranks.count(), ranks.number()
    parts = [job.work / f"rows-{number}-of-{count}.arrow" for number in range(count)]
    if not parts[rank].exists():
        share = items[len(items) * rank // count : len(items) * (rank + 1) // count]
        _write(parts[rank], filter(fits, _with_progress(rows_of(share), len(share))))
    ranks.wait()
    tables = [table for table in map(MemoryMappedTable.from_file, map(str, parts)) if len(table)]
    # By default the fingerprint is a digest of all rows. It only names cache files, and these rows have none.
    kept = Dataset(concat_tables(tables), fingerprint="rows") if tables else Dataset.from_dict({})
    return kept, len(items) - len(kept)


def packed(job: contract.Job[Any], unpacked: Dataset, block: int) -> Dataset:
    """Blocks of at most `block` tokens, each of whole rows, whose lengths are in `seq_lengths`.

    The first process packs them, unless an interrupted step already has. All processes must call it together.
    """
    path = job.work / "blocks.arrow"
    if ranks.first() and not path.exists():
        with artifact.atomic_write(path) as beside:
            pack_dataset(unpacked, block, map_kwargs={"batch_size": ROWS_AT_ONCE, "cache_file_name": str(beside)})
    ranks.wait()
    return Dataset(MemoryMappedTable.from_file(str(path)), fingerprint="blocks")


def _write(path: Path, rows: Iterator[Row]) -> None:
    """Write rows as an Arrow stream, ROWS_AT_ONCE at a time; no rows give a table without columns."""
    with artifact.atomic_write(path) as beside, beside.open("wb") as file:
        taken = list(islice(rows, ROWS_AT_ONCE))
        columns = pa.schema({key: _kind(value) for key, value in taken[0].items()} if taken else {})
        with pa.ipc.new_stream(file, columns) as stream:
            while taken:
                stream.write_batch(pa.RecordBatch.from_pylist(taken, columns))
                taken = list(islice(rows, ROWS_AT_ONCE))


def _kind(value: Any) -> pa.DataType:
    return pa.list_(pa.int32()) if isinstance(value, list) else pa.scalar(value).type


def _with_progress(rows: Iterable[Row], total: int) -> Iterator[Row]:
    """The same rows, while the first process logs its pace."""
    pace = Throughput()
    for number, row in enumerate(rows, start=1):
        tokens = sum(len(value) for value in row.values() if isinstance(value, list))
        if line := pace.line(tokens, 1, total - number):
            contract.progress(f"{number:,}/{total:,} rows of this process tokenised  {line}")
        yield row
