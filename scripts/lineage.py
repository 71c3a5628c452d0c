"""What an artifact was made from, down to data sets, prompts and base models with their licences.

    python -m scripts.lineage results/tiny/runs/main/iter3/policy [--json]

Reads the manifests and prints one line per artifact: its path in the results, stage, settings, counts, licence, digest,
and when and at which commit it was made. Zeros and minor settings are omitted; `--json` has everything. An artifact
whose digest differs from what its reader recorded is marked.
"""

import argparse
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scripts.lib.planning import paths
from scripts.lib.planning.cards import CARDS
from scripts.lib.stage import artifact
from scripts.lib.stage.digest import file_sha256
from scripts.lib.stage.errors import InputError

# Settings that affect the result but are too detailed for the one-line summary.
DETAILS = {
    "adam_beta2", "chat_template_sha256", "confidence", "dtype", "files", "initializer_range", "kind", "license",
    "max_prompt_tokens", "resamples", "schedule", "first", "prompts", "templates", "top_p", "warmup_ratio",
    "weight_decay",
}  # fmt: skip
WIDTH = 40


@dataclass(frozen=True)
class Read:
    """One input as its reader recorded it; `agrees` is None for a source file, which has no manifest."""

    path: str
    name: str
    sha256: str
    agrees: bool | None


@dataclass
class Node:
    """One artifact: its manifest ({} for a source file from outside), its run facts, and its inputs."""

    path: str
    manifest: dict[str, Any]
    run: dict[str, Any] = field(default_factory=dict)
    inputs: list[Read] = field(default_factory=list)


def results_root(path: Path) -> Path:
    """The results folder of an artifact: the topmost parent below which its path matches the grammar.

    Raises InputError if there is none.
    """
    places = [paths.pattern(card.output.partition(".")[0]) for card in CARDS.values()]
    for folder in reversed(path.parents):
        if any(place.fullmatch(path.relative_to(folder).as_posix()) for place in places):
            return folder
    raise InputError(
        f"{path}: not the place of an artifact\n"
        "Hint: give a table X.parquet, a folder X of weights, report.html, or the X.json beside one of them."
    )


def read_manifest(stem: Path, why: str) -> dict[str, Any]:
    """The manifest of the artifact X at `stem`.

    Raises InputError if it is missing, saying `why` it is needed, or if it is not a manifest.
    """
    path = artifact.manifest_path(stem)
    if not path.is_file():
        raise InputError(
            f"{path}: no such manifest; {why}\n"
            "Hint: run Snakemake to build the artifact; its lineage is unknown without the manifest."
        )
    manifest = artifact.read_json(path)
    keys = ("stage", "settings", "inputs", "output", "counts", "metrics")
    if missing := [key for key in keys if key not in manifest]:
        raise InputError(f"{path}: not a manifest: it has no {', '.join(missing)}\nHint: delete it and run Snakemake.")
    return manifest


def named(root: Path, stem: str) -> str:
    """Path of the artifact X relative to the results: X for weights, even pruned ones, else X with its suffix."""
    if artifact.digests_path(root / stem).exists():
        return stem
    return f"{stem}.html" if (root / f"{stem}.html").exists() else f"{stem}.parquet"


def gather(path: Path) -> tuple[Path, dict[str, Node]]:
    """(results root, by path the artifact at `path` and everything that it was made from; the artifact comes first).

    Raises InputError for a path that is not an artifact's, or a manifest that is missing or unreadable.
    """
    stem = artifact.stem(path.resolve())
    root = results_root(stem)
    nodes: dict[str, Node] = {}
    pending = [(stem.relative_to(root).as_posix(), "the artifact you asked about needs it")]
    while pending:
        stem_of, why = pending.pop()
        name = named(root, stem_of)
        if name in nodes:
            continue
        run_path = artifact.run_path(root / stem_of)
        node = Node(name, read_manifest(root / stem_of, why), artifact.read_json(run_path) if run_path.exists() else {})
        nodes[name] = node
        for role, entries in node.manifest["inputs"].items():
            for entry in entries:
                if role == "source":
                    node.inputs.append(Read(entry["path"], role, entry["sha256"], None))
                    nodes.setdefault(entry["path"], Node(entry["path"], {}))
                    continue
                below = artifact.stem(Path(entry["path"])).as_posix()
                pending.append((below, why := f"{name} was made from it"))
                whole = read_manifest(root / below, why)
                # The report's inputs are manifests; those of other stages are the artifacts that manifests describe.
                now = file_sha256(root / entry["path"]) if entry["path"].endswith(".json") else whole["output"]
                node.inputs.append(Read(named(root, below), role, entry["sha256"], now == entry["sha256"]))
    return root, nodes


def shown(values: dict[str, Any]) -> str:
    """The scalars and short lists of a mapping on one line, without zeros, nulls and DETAILS."""
    parts = []
    for key, value in values.items():
        if key in DETAILS or not value or isinstance(value, dict):
            continue
        if isinstance(value, list):
            if any(isinstance(item, list | dict) for item in value):
                continue
            text = "[" + ", ".join(map(scalar, value)) + "]"
        else:
            text = scalar(value)
        parts.append(f"{key} {text if len(text) <= WIDTH else text[: WIDTH - 1] + '…'}")
    return ", ".join(parts)


def scalar(value: Any) -> str:
    """One setting or count, formatted for people."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def label(paths: list[str]) -> str:
    """One path, or `folder/*.parquet` for several shards."""
    return paths[0] if len(paths) == 1 else f"{paths[0].rsplit('/', 1)[0]}/*.parquet"


def describe(nodes: list[Node]) -> str:
    """The line for one artifact, or for several shards that differ only in their number."""
    first = nodes[0].manifest
    if not first:
        return f"{nodes[0].path}  source file"
    head = f"{label([node.path for node in nodes])}  {first['stage']}"
    counts = {key: sum(node.manifest["counts"].get(key, 0) for node in nodes) for key in first["counts"]}
    parts = [f"{len(nodes)} shards"] if len(nodes) > 1 else []
    parts += [shown(first["settings"]), shown(counts)]
    if "license" in first["metrics"]:
        parts.append(f"license {first['metrics']['license']}")
    if "commit" in first["metrics"]:
        parts.append(f"the hub's commit {first['metrics']['commit'][:10]}")
    if len(nodes) == 1:
        parts.append(f"sha256 {first['output'][:8]}")
    if runs := [node.run for node in nodes if node.run]:
        last = max(run["finished"] for run in runs)
        commits = sorted({(run["git_commit"] or "none")[:7] + " (dirty)" * bool(run["git_dirty"]) for run in runs})
        parts.append(f"{last[:16].replace('T', ' ')} UTC, commit {' and '.join(commits)}")
    return f"{head}: {'; '.join(filter(None, parts))}"


def groups(reads: list[Read], nodes: dict[str, Node]) -> list[list[Read]]:
    """What was read, each artifact once; shards of one folder, stage and settings form one group."""
    merged: dict[str, Read] = {}
    for read in reads:
        before = merged.get(read.path)
        # An artifact that is read in two roles counts as changed if either entry says so.
        if before is None or (before.agrees and not read.agrees):
            merged[read.path] = read
    by_key: dict[tuple[str, ...], list[Read]] = {}
    for read in merged.values():
        folder, _, name = read.path.removesuffix(".parquet").rpartition("/")
        manifest = nodes[read.path].manifest
        key: tuple[str, ...] = (read.path,)
        if name.isdecimal() and manifest:
            same = {k: v for k, v in manifest["settings"].items() if k not in ("first", "prompts")}
            key = (folder, manifest["stage"], artifact.canonical_json(same))
        by_key.setdefault(key, []).append(read)
    return list(by_key.values())


Line = tuple[str, list[Any]]


def lines(group: list[Read], nodes: dict[str, Node], above: set[str]) -> list[Line]:
    """(text, lines beneath it) of a group: new artifacts in full, those already in `above` by name only."""
    new = [read for read in group if read.path not in above]
    old = [read for read in group if read.path in above]
    result: list[Line] = []
    if new:
        above.update(read.path for read in new)
        here = [nodes[read.path] for read in new]
        parts = groups([read for node in here for read in node.inputs], nodes)
        result.append((describe(here) + changed(new), [line for part in parts for line in lines(part, nodes, above)]))
    if old:
        result.append((f"{label([read.path for read in old])}  (above){changed(old)}", []))
    return result


def changed(reads: list[Read]) -> str:
    """The mark of artifacts that differ from what their reader recorded; empty if none does."""
    differing = [read for read in reads if read.agrees is False]
    if not differing:
        return ""
    which = f"as {differing[0].sha256[:8]}" if len(reads) == 1 else f"({len(differing)} of {len(reads)} shards)"
    return f"  CHANGED SINCE it was read {which}"


def draw(branches: list[Line], before: str = "") -> list[str]:
    """Lines of a tree, with its branches drawn in front."""
    drawn = []
    for i, (text, below) in enumerate(branches):
        last = i == len(branches) - 1
        drawn.append(f"{before}{'└── ' if last else '├── '}{text}")
        drawn += draw(below, before + ("    " if last else "│   "))
    return drawn


def tree(nodes: dict[str, Node]) -> str:
    """The tree beneath the first node, for people."""
    top = next(iter(nodes.values()))
    ((text, below),) = lines([Read(top.path, "", "", None)], nodes, set())
    drawn = [text, *draw(below)]
    count = sum(read.agrees is False for node in nodes.values() for read in node.inputs)
    if count:
        drawn += ["", f"{count} input{'s' * (count > 1)} changed after being read: what was made from it is outdated."]
        drawn += ["Hint: `snakemake -n all` shows what would be rebuilt."]
    return "\n".join(drawn)


def graph(root: Path, nodes: dict[str, Node]) -> dict[str, Any]:
    """The whole graph, machine-readable: nodes with manifests and run facts, edges from each input to its reader."""
    return {
        "results": str(root),
        "nodes": [{"path": node.path, "manifest": node.manifest, "run": node.run} for node in nodes.values()],
        "edges": [
            {"from": read.path, "to": node.path, "input": read.name, "sha256": read.sha256, "agrees": read.agrees}
            for node in nodes.values()
            for read in node.inputs
        ],
    }


def main(argv: list[str] | None = None) -> int:
    """Command line; see `--help`."""
    parser = argparse.ArgumentParser(prog="python -m scripts.lineage", description=__doc__.split("\n")[0])
    parser.add_argument("artifact", type=Path, help="a folder of weights, a table, report.html, or the .json beside it")
    parser.add_argument("--json", action="store_true", help="the whole graph as nodes and edges")
    args = parser.parse_args(argv)
    try:
        root, nodes = gather(args.artifact)
    except InputError as error:
        print(f"lineage: {error}", file=sys.stderr)
        return 2
    print(json.dumps(graph(root, nodes), indent=2, ensure_ascii=False) if args.json else tree(nodes))
    return 0


if __name__ == "__main__":
    sys.exit(main())
