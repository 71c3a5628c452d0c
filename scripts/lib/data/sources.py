"""Local files that enter the workflow from outside: how they are found, and digests of their bytes."""

import difflib
import os
from pathlib import Path

from scripts.lib.stage.digest import ROOT, file_sha256
from scripts.lib.stage.errors import ConfigError, InputError

LISTED = 5  # of a folder's files, in a message
DATA = (".jsonl", ".parquet")
TEMPLATES = ROOT / "config" / "templates"  # our chat templates


def present(path: str, pattern: str) -> list[Path]:
    """The files of a source that exist, in name order: one file, or those in a folder that match `pattern`."""
    place = ROOT / path  # an absolute path stays unchanged
    return [place] if place.is_file() else sorted(file for file in place.glob(pattern) if file.is_file())


def files(path: str, pattern: str, key: str) -> list[Path]:
    """The files of a source in name order: one file, or those in a folder that match `pattern`.

    `key` is the config key that names the source. Raises ConfigError if there are none.
    """
    matching = present(path, pattern)
    if not Path(path).is_absolute():
        matching = [Path(os.path.relpath(file, ROOT)) for file in matching]
    if not matching:
        raise ConfigError(f"{key} = {path!r}: {_why_none(ROOT / path, pattern)}")
    return matching


def _why_none(place: Path, pattern: str) -> str:
    """Why a place holds no file of a source, and what to do."""
    if not place.exists():
        near = difflib.get_close_matches(place.name, [each.name for each in place.parent.glob("*")], n=1)
        hint = f"did you mean {near[0]}?" if near else "put the data there, or name its folder in an overlay."
        return f"no such file or folder. Hint: {hint}"
    there = sorted(each.relative_to(place).as_posix() for each in place.rglob("*") if each.is_file())
    if not there:
        return "the folder is empty. Hint: put the data there, or name its folder in an overlay."
    listed = ", ".join(there[:LISTED]) + (f" and {len(there) - LISTED} more" if len(there) > LISTED else "")
    return f"no file there matches {pattern!r}; it has {listed}. Hint: set `pattern` to match the files to read."


def is_data(name: str) -> bool:
    """Whether a file of a hub repository holds rows: JSONL or parquet, plain or gzipped."""
    return name.removesuffix(".gz").endswith(DATA)


def fetched(folders: list[Path]) -> list[Path]:
    """The data files in folders fetched from a hub, in path order; the card and licences are not among them."""
    return [file for folder in folders for file in sorted(folder.rglob("*")) if file.is_file() and is_data(file.name)]


def digest(path: str, pattern: str, key: str) -> list[str]:
    """`SHA-256  name` of every file of a source: content, not modification time or path, decides what is rebuilt."""
    return [f"{file_sha256(ROOT / file)}  {file.name}" for file in files(path, pattern, key)]


def verify(paths: list[Path], planned: list[str]) -> None:
    """Raise InputError unless the files still have the contents with which the build was planned."""
    present = sorted(f"{file_sha256(path)}  {path.name}" for path in paths)
    if present != sorted(planned):
        raise InputError(
            f"source: files differ from the planned ones: {sorted(set(present) ^ set(planned))}\n"
            "Hint: they changed after the build was planned; start Snakemake again."
        )
