"""Checks every byte of every table and of all weights under the results against the manifests.

    python -m scripts.verify_results --results results/tiny

Problems are listed by artifact, since an artifact is rebuilt as a whole; for a folder of weights, the first bad file is
named. Pruned weights are not a problem: their digests are still there. Exit code 2 if there is any problem.
"""

import argparse
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from scripts.lib.stage import artifact
from scripts.lib.stage.digest import file_sha256
from scripts.lib.stage.errors import InputError

# Folders of the results that no manifest describes.
UNDESCRIBED = {"benchmarks", "logs", "work"}
THREADS = 4
REBUILD = "Hint: delete it and run Snakemake, which rebuilds it."
STRAY = "Hint: if you put it there, move it elsewhere; otherwise delete it and run Snakemake."
REBUILD_MODEL = "Hint: delete the folder and the .sha256 and .json beside it, and run Snakemake, which rebuilds it."


@dataclass(frozen=True)
class Checked:
    """The result for the artifact X: its size on disk in bytes, and what is wrong with it ("" if nothing is)."""

    size: int
    pruned: bool = False
    problem: str = ""


def find(root: Path) -> tuple[list[Path], list[Path]]:
    """(stems X of all artifacts and of files that describe one, leftovers of killed writes) in the results, sorted."""
    stems: set[Path] = set()
    parts: list[Path] = []
    for place, folders, files in os.walk(root):
        here = Path(place)
        if here == root:
            folders[:] = [name for name in folders if name not in UNDESCRIBED]
        for name in list(folders):
            path = here / name
            if name.endswith(".part"):
                parts.append(path)
                folders.remove(name)
            elif is_model(path):
                stems.add(path)
                folders.remove(name)
        for name in files:
            if name.endswith(".part"):
                parts.append(here / name)
            elif name.endswith((".json", ".parquet", ".sha256")) and not name.endswith(".run.json"):
                stems.add((here / name).with_suffix(""))
    return sorted(stems), sorted(parts)


def is_model(folder: Path) -> bool:
    """Whether a folder holds weights; the folder X/ beside a table X.parquet holds other tables instead."""
    return artifact.digests_path(folder).is_file() or (folder / "config.json").is_file()


def check(stem: Path) -> Checked:
    """Compare the artifact X at `stem` with its manifest, reading all of its bytes."""
    try:
        return check_readable(stem)
    except OSError as error:
        return Checked(0, problem=f"{stem}: cannot be read: {error}\nHint: check the disk and the permissions.")


def check_readable(stem: Path) -> Checked:
    """Compare like `check`, but raise OSError for a file that cannot be read."""
    listing = artifact.digests_path(stem)
    if listing.is_file() or is_model(stem):
        return check_model(stem, listing)
    tables = [path for ending in ("parquet", "html") if (path := stem.with_name(f"{stem.name}.{ending}")).is_file()]
    size = sum(map(artifact.size, tables))
    try:
        wanted = output_of(stem)
    except InputError as error:
        return Checked(size, problem=str(error))
    if not tables:
        path = artifact.manifest_path(stem)
        return Checked(0, problem=f"{path}: describes nothing: there is no table or folder {stem.name}\n{REBUILD}")
    actual = file_sha256(tables[0])
    problem = f"{tables[0]}: sha256 is {actual}, its manifest says {wanted}\n{REBUILD}" if actual != wanted else ""
    return Checked(size, problem=problem)


def check_model(folder: Path, listing: Path) -> Checked:
    """Compare a folder of weights with its digests file, and that with the manifest; the folder may be pruned."""
    pruned = not folder.is_dir()
    size = 0 if pruned else artifact.size(folder)
    try:
        wanted = output_of(folder)
        actual = file_sha256(listing) if pruned else artifact.verify_model(folder)
    except InputError as error:
        return Checked(size, pruned, str(error))
    problem = f"{listing}: sha256 is {actual}, the manifest says {wanted}\n{REBUILD_MODEL}" if actual != wanted else ""
    return Checked(size, pruned, problem)


def output_of(stem: Path) -> str:
    """The digest in the manifest of the artifact X. Raises InputError if it is missing or unreadable."""
    path = artifact.manifest_path(stem)
    if not path.is_file():
        raise InputError(f"{stem}: no manifest {path.name} beside it\n{STRAY}")
    wanted = artifact.read_json(path).get("output")
    if not isinstance(wanted, str):
        raise InputError(f"{path}: not a manifest: it has no `output`\n{STRAY}")
    return wanted


def verify(root: Path) -> tuple[list[str], str]:
    """(problems, summary in one line); progress goes to standard output.

    Raises InputError if there is nothing to verify.
    """
    stems, parts = find(root)
    if not stems:
        raise InputError(f"{root}: no artifacts there\nHint: run `snakemake all` first, or name other results.")
    problems, size, pruned = [], 0, 0
    step = max(1, len(stems) // 10)
    # Hashing releases the GIL, so threads run in parallel.
    with ThreadPoolExecutor(THREADS) as pool:
        for done, checked in enumerate(pool.map(check, stems), 1):
            size += checked.size
            pruned += checked.pruned
            problems += [checked.problem] if checked.problem else []
            if done % step == 0 or done == len(stems):
                print(f"verified {done} of {len(stems)} artifacts, {size / 1e6:.1f} MB", flush=True)
    hint = "Hint: a step that was killed left it; delete it when nothing is running."
    problems += [f"{path}: half-written\n{hint}" for path in parts]
    summary = f"{root}: {len(stems)} artifacts, {pruned} of them pruned weights, {size / 1e6:.1f} MB"
    return problems, summary


def main(argv: list[str] | None = None) -> int:
    """Command line; see `--help`."""
    parser = argparse.ArgumentParser(prog="python -m scripts.verify_results", description=__doc__.split("\n")[0])
    parser.add_argument("--results", type=Path, required=True, help="root of all artifacts, such as results/tiny")
    args = parser.parse_args(argv)
    try:
        problems, summary = verify(args.results)
    except InputError as error:
        print(f"verify_results: {error}", file=sys.stderr)
        return 2
    count = f"{len(problems)} problem{'s' * (len(problems) > 1)}" if problems else "no problems"
    print(f"{summary}: {count}")
    for problem in problems:
        print("  - " + problem.replace("\n", "\n    "))
    return 2 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
