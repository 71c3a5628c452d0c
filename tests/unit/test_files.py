"""Rows of files: every kind gives the same ones, and what cannot be read is said."""

import gzip
import json

import polars as pl
import pytest

from scripts.lib.data import files
from scripts.lib.stage.errors import InputError


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.jsonl.gz", "a.json", "array.json", "array.json.gz", "a.parquet", "a.parquet.gz"]
)
def test_every_kind_of_file_gives_the_same_rows(tmp_path, name):
    # U+2028 and U+0085 end a line for str.splitlines, and must not here.
    values = [{"prompt": "one\u2028two\x85three", "response": "r"}, {"prompt": "p", "response": None}]
    path = tmp_path / name
    if "parquet" in name:
        pl.DataFrame(values).write_parquet(path)
        data = path.read_bytes()
    elif name.startswith("array"):
        data = json.dumps(values, indent=1).encode()
    else:
        data = "\n".join(json.dumps(value, ensure_ascii=False) for value in values).encode() + b"\n\n"
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert list(files.rows(path)) == values


def test_gzip_is_recognised_by_its_bytes(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(gzip.compress(b'{"prompt": "p"}\n'))
    (tmp_path / "b.jsonl.gz").write_bytes(b'{"prompt": "p"}\n')
    assert [list(files.rows(tmp_path / name)) for name in ("a.jsonl", "b.jsonl.gz")] == [[{"prompt": "p"}]] * 2


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("LICENSE.txt", b"MIT"),
        ("a.pkl", b"\x80\x04N."),
        ("a.jsonl.gz", gzip.compress(b'{"prompt": "p"}\n' * 999, mtime=0)[:-20]),
        ("a.parquet", b"no parquet"),
        ("a.json", b"[1, 2"),
    ],
)
def test_a_file_that_cannot_be_read_is_an_input_error_with_a_hint(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=f"{name}.*\n?.*Hint: "):
        list(files.rows(tmp_path / name))
