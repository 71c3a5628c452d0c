"""Deletes the weights of iterations that no run keeps (`runs.NAME.keep`) and that nothing needs any more.

A policy's folder is deleted only if everything that the target `all` makes directly from it exists and was made from
exactly these weights. Its manifest, digests and run facts stay, so its lineage remains known and Snakemake has nothing
to do. Base models, SFT policies and reward models are never touched.
"""

import argparse
import json
import os
import shutil
import sys
from pathlib import Path

from scripts.lib.kinds.config import Config
from scripts.lib.kinds.runs import Run
from scripts.lib.planning import config as configuration
from scripts.lib.planning.plan import Plan
from scripts.lib.stage import artifact
from scripts.lib.stage.digest import file_sha256
from scripts.lib.stage.errors import InputError


def obstacle(plan: Plan, folder: Path, readers: list[str]) -> str:
    """Why a policy's weights cannot be deleted yet; empty if they can.

    Raises InputError for a manifest that cannot be read.
    """
    manifest, listing = artifact.manifest_path(folder), artifact.digests_path(folder)
    if not manifest.is_file() or not listing.is_file():
        return "its manifest or digests are missing; `snakemake all` retrains it"
    digest = file_sha256(listing)
    if artifact.read_json(manifest)["output"] != digest:
        return f"{listing.name} does not match {manifest.name}; `snakemake verify` says more"
    listed = {line.partition("  ")[2] for line in listing.read_text(encoding="utf-8").splitlines()}
    present = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    if unlisted := sorted(present - listed - {".snakemake_timestamp"}):
        return f"{unlisted[0]} is not among the files that training wrote; move it elsewhere"
    name = folder.relative_to(plan.root).as_posix()
    for reader in readers:
        if problem := unfinished(plan, reader, name, digest):
            return f"{reader.removeprefix(f'{plan.root}/')} {problem}"
    return ""


def unfinished(plan: Plan, reader: str, name: str, digest: str) -> str:
    """Why an artifact still needs the weights `name` with this digest; empty if it was made from them already."""
    path = Path(reader)
    # A reader that is itself weights may be pruned; then its digests file is left.
    file = path if path.suffix else artifact.digests_path(path)
    if not file.is_file() or not artifact.manifest_path(path).is_file():
        return "has yet to be made from them"
    manifest = artifact.read_json(artifact.manifest_path(path))
    read = [entry for entries in manifest["inputs"].values() for entry in entries]
    if not any(entry["path"] == name and entry["sha256"] == digest for entry in read):
        return "was made from other weights and must be rebuilt"
    rule, wildcards = plan.maker(reader)
    if manifest["settings"] != json.loads(plan.settings_json(rule, wildcards)):
        return "was made with other settings and must be rebuilt"
    return ""


def kept_by(run: Run) -> set[int]:
    """The iterations of a run whose weights stay on disk."""
    if isinstance(run.keep, list):
        return set(run.keep)
    return {run.iterations} if run.keep == "last" else set(range(1, run.iterations + 1))


def readers_of(plan: Plan) -> dict[str, list[str]]:
    """For every artifact that the target `all` needs, the artifacts that are made directly from it."""
    readers_by_path: dict[str, set[str]] = {}
    for path in plan.artifacts(*plan.asked("all")):
        for below in plan.reads(path):
            readers_by_path.setdefault(below, set()).add(path)
    return {path: sorted(readers) for path, readers in readers_by_path.items()}


def remove(folder: Path) -> int:
    """Delete a folder and return the bytes freed; other processes see all of it or nothing."""
    size = artifact.size(folder)
    going = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    folder.rename(going)
    shutil.rmtree(going)
    return size


def prune(config: Config) -> None:
    """Delete what a resolved configuration allows to delete; print what was deleted, what was left, and why."""
    plan = Plan(config)
    readers = readers_of(plan)
    freed = 0
    for name, run in config.runs.items():
        kept = kept_by(run)
        for n in range(1, run.iterations + 1):
            policy = plan.iteration(name, n)
            folder = Path(plan.policy(policy))
            if n in kept:
                print(f"kept   {policy}: runs.{name}.keep is {run.keep}")
            elif not folder.is_dir():
                print(f"gone   {policy}: no weights on disk")
            elif why := obstacle(plan, folder, readers.get(str(folder), [])):
                print(f"left   {policy}: {why}")
            else:
                size = remove(folder)
                freed += size
                print(f"freed  {policy}: {size / 1e6:.1f} MB")
    print(f"{freed / 1e6:.1f} MB freed; `make phases TARGET=weights` retrains those of the chosen run")


def main(argv: list[str] | None = None) -> int:
    """Command line; see `--help`."""
    parser = argparse.ArgumentParser(prog="python -m scripts.prune_weights", description=__doc__.split("\n")[0])
    parser.add_argument("--config", required=True, help="JSON: the resolved configuration, as the rule passes it")
    args = parser.parse_args(argv)
    try:
        prune(configuration.resolve(json.loads(args.config)))
    except InputError as error:
        print(f"prune_weights: {error}", flush=True)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
