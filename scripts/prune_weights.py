"""Free the weights of iterations that no run keeps (`runs.NAME.keep`), where nothing will ask for them again.

A policy's folder goes only if everything that the target `all` makes directly from it is there, made from exactly
these weights. Its manifest, digests and run facts stay, so its lineage can still be told, and Snakemake plans nothing.
Base models, SFT policies and reward models are never touched.
"""

import argparse
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from scripts.lib.planning import settings
from scripts.lib.planning.plan import Plan
from scripts.lib.stage import artifact
from scripts.lib.stage.digest import file_sha256
from scripts.lib.stage.errors import InputError


def obstacle(plan: Plan, folder: Path, readers: list[str]) -> str:
    """Why a policy's weights cannot go yet; empty if they can.

    Raises InputError for a manifest that cannot be read.
    """
    manifest, listing = artifact.manifest_path(folder), artifact.digests_path(folder)
    if not manifest.is_file() or not listing.is_file():
        return "its manifest or digests are missing; `snakemake all` trains it again"
    digest = file_sha256(listing)
    if artifact.read_json(manifest)["output"] != digest:
        return f"{listing.name} is not what {manifest.name} says; `snakemake verify` says more"
    listed = {line.partition("  ")[2] for line in listing.read_text().splitlines()}
    present = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    if strange := sorted(present - listed - {".snakemake_timestamp"}):
        return f"{strange[0]} is not among the files that training wrote; move it elsewhere"
    name = folder.relative_to(plan.root).as_posix()
    for reader in readers:
        if problem := unfinished(plan, reader, name, digest):
            return f"{reader.removeprefix(f'{plan.root}/')} {problem}"
    return ""


def unfinished(plan: Plan, reader: str, name: str, digest: str) -> str:
    """What is wrong with an artifact that is made from the weights `name` with this digest; empty if it is there."""
    path = Path(reader)
    # Weights may themselves be pruned: their digests stand for them.
    file = path if path.suffix else artifact.digests_path(path)
    if not file.is_file() or not artifact.manifest_path(path).is_file():
        return "is still to be made from them"
    manifest = artifact.read_json(artifact.manifest_path(path))
    read = [entry for entries in manifest["inputs"].values() for entry in entries]
    if not any(entry["path"] == name and entry["sha256"] == digest for entry in read):
        return "was made from other weights and is to be made again"
    rule, wildcards = plan.maker(reader)
    if manifest["settings"] != json.loads(settings.of(plan, rule, **wildcards)):
        return "was made with other settings and is to be made again"
    return ""


def kept_by(run: dict[str, Any]) -> set[int]:
    """The iterations of a run whose weights stay on disk."""
    if isinstance(run["keep"], list):
        return set(run["keep"])
    return {run["iterations"]} if run["keep"] == "last" else set(range(1, run["iterations"] + 1))


def readers_of(plan: Plan) -> dict[str, list[str]]:
    """For every artifact beneath the target `all`, the artifacts that are made directly from it."""
    found: dict[str, set[str]] = {}
    for path in plan.artifacts(*plan.asked("all")):
        for below in plan.inputs(path):
            found.setdefault(below, set()).add(path)
    return {path: sorted(readers) for path, readers in found.items()}


def remove(folder: Path) -> int:
    """Delete a folder, which is there whole or not at all for everyone else; return the bytes freed."""
    size = artifact.size(folder)
    going = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    folder.rename(going)
    shutil.rmtree(going)
    return size


def prune(config: dict[str, Any]) -> None:
    """Free what can be freed under a resolved configuration, and print what went, what stayed and why."""
    plan = Plan(config)
    readers = readers_of(plan)
    freed = 0
    for name, run in config["runs"].items():
        kept = kept_by(run)
        for n in range(1, run["iterations"] + 1):
            policy = plan.iteration(name, n)
            folder = Path(plan.policy(policy))
            if n in kept:
                print(f"kept   {policy}: runs.{name}.keep is {run['keep']}")
            elif not folder.is_dir():
                print(f"gone   {policy}: no weights on disk")
            elif why := obstacle(plan, folder, readers.get(str(folder), [])):
                print(f"left   {policy}: {why}")
            else:
                size = remove(folder)
                freed += size
                print(f"freed  {policy}: {size / 1e6:.1f} MB")
    print(f"{freed / 1e6:.1f} MB freed; `make phases TARGET=weights` trains the chosen run's again")


def main(argv: list[str] | None = None) -> int:
    """Command line; see `--help`."""
    parser = argparse.ArgumentParser(prog="python -m scripts.prune_weights", description=__doc__.split("\n")[0])
    parser.add_argument("--config", required=True, help="JSON: the resolved configuration, as the rule passes it")
    args = parser.parse_args(argv)
    try:
        prune(json.loads(args.config))
    except InputError as error:
        print(f"prune_weights: {error}", flush=True)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
