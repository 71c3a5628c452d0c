"""What made an artifact, down to data sets, prompts and base models with their licences: read from its manifests.

    python -m scripts.lineage results/tiny/runs/main/iter3/policy [--json]

One line for each artifact: its path in the results, stage, settings, counts, licence, digest, and when and on which
commit it was made. Settings and counts of zero, and details of training, are left out; `--json` has all of them.
An artifact whose digest is no longer the one that its reader recorded is marked.
"""

import argparse
import json
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scripts.lib.stage import artifact
from scripts.lib.stage.digest import file_sha256
from scripts.lib.stage.errors import InputError

# Where an artifact stands beneath the results, without its ending; the grammar stands at the top of the Snakefile.
POLICY = r"(sft/\w+|runs/\w+/iter\d+)"
PLACE = re.compile(
    r"base/\w+/model|reward/\w+/model|source/\w+/\w+(-\d+)?/files|prompts/\w+-\d+|report"
    rf"|data/\w+(/pairs/\w+(/reference/(nf4/)?{POLICY})?)?|{POLICY}/(policy|eval/\w+|rollouts/\w+/.+)"
)
# Settings that decide the result, but that nobody asks for first.
DETAILS = {
    "adam_beta2", "chat_template_sha256", "confidence", "dtype", "files", "initializer_range", "kind", "license",
    "max_prompt_tokens", "resamples", "schedule", "first", "prompts", "top_p", "warmup_ratio", "weight_decay",
}  # fmt: skip
WIDTH = 40


@dataclass(frozen=True)
class Read:
    """One artifact as the reader of it recorded it; `agrees` is None for a source file, which has no manifest."""

    path: str
    name: str
    sha256: str
    agrees: bool | None


@dataclass
class Node:
    """One artifact: its manifest ({} for a source file from outside), facts of its run, and what it was made from."""

    path: str
    manifest: dict[str, Any]
    run: dict[str, Any] = field(default_factory=dict)
    inputs: list[Read] = field(default_factory=list)


def results_root(path: Path) -> Path:
    """The results that an artifact lies in: the topmost folder beneath which its place is one of the grammar's."""
    for folder in reversed(path.parents):
        if PLACE.fullmatch(path.relative_to(folder).as_posix()):
            return folder
    raise InputError(
        f"{path}: not the place of an artifact\n"
        "Hint: give a table X.parquet, a folder X of weights, report.html, or the X.json beside one of them."
    )


def read_manifest(stem: Path, why: str) -> dict[str, Any]:
    """The manifest of the artifact X at `stem`. Raises InputError that says why it was wanted."""
    path = artifact.manifest_path(stem)
    if not path.is_file():
        raise InputError(f"{path}: no such manifest, {why}\nHint: run Snakemake for it; without it nothing is known.")
    found = artifact.read_json(path)
    if missing := [key for key in ("stage", "settings", "inputs", "output", "counts", "metrics") if key not in found]:
        raise InputError(f"{path}: not a manifest: it has no {', '.join(missing)}\nHint: delete it and run Snakemake.")
    return found


def named(root: Path, stem: str) -> str:
    """Path of the artifact X beneath the results: a folder of weights stays X, even if it was pruned."""
    if artifact.digests_path(root / stem).exists():
        return stem
    return f"{stem}.html" if (root / f"{stem}.html").exists() else f"{stem}.parquet"


def gather(path: Path) -> tuple[Path, dict[str, Node]]:
    """(results root, everything that the artifact at `path` was made from by path, the artifact itself first).

    Raises InputError for a path that is no artifact, and for a manifest that is missing or cannot be read.
    """
    stem = artifact.stem(path.resolve())
    root = results_root(stem)
    nodes: dict[str, Node] = {}
    pending = [(stem.relative_to(root).as_posix(), "and it is what you asked about")]
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
                pending.append((below, why := f"though {name} was made from it"))
                whole = read_manifest(root / below, why)
                # The report reads manifests themselves, everything else reads what they describe.
                now = file_sha256(root / entry["path"]) if entry["path"].endswith(".json") else whole["output"]
                node.inputs.append(Read(named(root, below), role, entry["sha256"], now == entry["sha256"]))
    return root, nodes


def shown(values: dict[str, Any]) -> str:
    """The scalars and short lists of a mapping for one line; zeros, nulls and details are left out."""
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
    """One setting or count for people."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def label(paths: list[str]) -> str:
    """One path, or `folder/*.parquet` of several shards."""
    return paths[0] if len(paths) == 1 else f"{paths[0].rsplit('/', 1)[0]}/*.parquet"


def describe(nodes: list[Node]) -> str:
    """The line of one artifact, or of several shards that differ in their number only."""
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
        commits = sorted({(run["git_commit"] or "none")[:7] + " (dirty)" * run["git_dirty"] for run in runs})
        parts.append(f"{last[:16].replace('T', ' ')} UTC, commit {' and '.join(commits)}")
    return f"{head}: {'; '.join(filter(None, parts))}"


def groups(reads: list[Read], nodes: dict[str, Node]) -> list[list[Read]]:
    """What was read, each artifact once, with the shards of one kind and equal settings in one group."""
    merged: dict[str, Read] = {}
    for read in reads:
        before = merged.get(read.path)
        # An artifact that is read in two roles is changed if either reader says so.
        if before is None or (before.agrees and not read.agrees):
            merged[read.path] = read
    found: dict[tuple[str, ...], list[Read]] = {}
    for read in merged.values():
        folder, _, name = read.path.removesuffix(".parquet").rpartition("/")
        manifest = nodes[read.path].manifest
        key: tuple[str, ...] = (read.path,)
        if name.isdecimal() and manifest:
            same = {k: v for k, v in manifest["settings"].items() if k not in ("first", "prompts")}
            key = (folder, manifest["stage"], artifact.canonical_json(same))
        found.setdefault(key, []).append(read)
    return list(found.values())


Line = tuple[str, list[Any]]


def lines(group: list[Read], nodes: dict[str, Node], above: set[str]) -> list[Line]:
    """(text, what stands beneath it) of a group: what is new in full, what stands `above` already by name."""
    new = [read for read in group if read.path not in above]
    old = [read for read in group if read.path in above]
    found: list[Line] = []
    if new:
        above.update(read.path for read in new)
        here = [nodes[read.path] for read in new]
        parts = groups([read for node in here for read in node.inputs], nodes)
        found.append((describe(here) + changed(new), [line for part in parts for line in lines(part, nodes, above)]))
    if old:
        found.append((f"{label([read.path for read in old])}  (above){changed(old)}", []))
    return found


def changed(reads: list[Read]) -> str:
    """The mark of what is no longer what its reader recorded; empty if all is."""
    found = [read for read in reads if read.agrees is False]
    if not found:
        return ""
    which = f"as {found[0].sha256[:8]}" if len(reads) == 1 else f"({len(found)} of {len(reads)} shards)"
    return f"  CHANGED SINCE it was read {which}"


def draw(found: list[Line], before: str = "") -> list[str]:
    """Lines with the branches of a tree before them."""
    drawn = []
    for i, (text, below) in enumerate(found):
        last = i == len(found) - 1
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
        drawn += ["Hint: `snakemake -n all` shows what would be made again."]
    return "\n".join(drawn)


def graph(root: Path, nodes: dict[str, Node]) -> dict[str, Any]:
    """The whole graph for machines: nodes with manifests and run facts, edges from what was read to its reader."""
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
