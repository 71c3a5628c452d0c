"""What the jobs of a build warned of, for the person at the terminal: a stage's own words are in its log."""

from collections.abc import Iterable
from pathlib import Path

from scripts.lib.stage import artifact
from scripts.lib.stage.errors import InputError


def lines(artifacts: Iterable[str]) -> list[str]:
    """One line for each warning in the manifests of artifacts, in the order of their paths; none where none is left."""
    found = []
    for manifest in sorted({artifact.manifest_path(Path(path)) for path in artifacts}):
        try:
            warnings = artifact.read_json(manifest).get("warnings", [])
        except InputError:  # it failed after all, or what it made is gone
            continue
        found += [f"warning: {manifest}: {text}" for text in warnings]
    return found
