"""Local files that enter the workflow from outside: which they are, and the digest that stands for their bytes."""

import os
from pathlib import Path

from scripts.lib.stage.digest import ROOT, file_sha256
from scripts.lib.stage.errors import ConfigError, InputError

DATA = (".jsonl", ".parquet")
TEMPLATES = ROOT / "config" / "templates"  # chat templates of ours


def present(path: str, pattern: str) -> list[Path]:
    """What there is of a source, in name order: one file, or those of a folder that match `pattern`."""
    place = ROOT / path  # an absolute path stays what it is
    return [place] if place.is_file() else sorted(file for file in place.glob(pattern) if file.is_file())


def files(path: str, pattern: str, key: str) -> list[Path]:
    """The files of a source in name order: one file, or those of a folder that match `pattern`.

    `key` is the config key that named it. Raises ConfigError when there are none.
    """
    found = present(path, pattern)
    if not Path(path).is_absolute():
        found = [Path(os.path.relpath(file, ROOT)) for file in found]
    if not found:
        raise ConfigError(
            f"{key} = {path!r}: no file there matches {pattern!r}. "
            f"Hint: put the data there, or name its folder in an overlay given by --configfile."
        )
    return found


def is_data(name: str) -> bool:
    """Whether a file of a hub's repository holds rows: JSONL or parquet, plain or gzip."""
    return name.removesuffix(".gz").endswith(DATA)


def fetched(folders: list[Path]) -> list[Path]:
    """The data files of folders that came from a hub, in the order of their paths; the card and licence are none."""
    return [file for folder in folders for file in sorted(folder.rglob("*")) if file.is_file() and is_data(file.name)]


def digest(path: str, pattern: str, key: str) -> list[str]:
    """`SHA-256  name` of every file of a source: bytes, neither times nor places, decide what is made again."""
    return [f"{file_sha256(ROOT / file)}  {file.name}" for file in files(path, pattern, key)]


def verify(paths: list[Path], planned: list[str]) -> None:
    """Raise InputError unless the files' bytes are those that the build was planned with."""
    present = sorted(f"{file_sha256(path)}  {path.name}" for path in paths)
    if present != sorted(planned):
        raise InputError(
            f"source: files differ from the planned ones: {sorted(set(present) ^ set(planned))}\n"
            "Hint: they changed after the build was planned; start Snakemake again."
        )
