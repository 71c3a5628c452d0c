"""What steps need of the machine that starts them: a `python`, and folders that can be written.

The `python` is the first on PATH if it has what a step imports, or else the one that runs Snakemake.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from scripts.lib.stage.errors import Complaints

# One package of each kind: what trains, what reads tables, what reads settings.
NEEDED = ("torch", "transformers", "trl", "datasets", "polars", "pydantic")
SPACE = 2**24  # bytes; not even logs and manifests would fit into less
PROBE = "import importlib.util as u; print(*(name for name in {names} if not u.find_spec(name)))"


def lacking(program: str) -> str:
    """What is wrong with an interpreter as that of a training environment, in words; empty if nothing is.

    It is asked itself, because `python` may be a shim, or a script that starts a container.
    """
    if not shutil.which(program):
        return "no program that can be run"
    try:
        asked = subprocess.run(
            [program, "-c", PROBE.format(names=NEEDED)], capture_output=True, encoding="utf-8", timeout=60, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        return f"does not run: {error}"
    missing = asked.stdout.split()
    return f"lacks {', '.join(missing)}" if missing else ""


def complaints(program: str) -> Complaints:
    """What is wrong with the interpreter that would train, before the first job finds out."""
    found = Complaints()
    if wrong := lacking(program):
        hint = "`make .venv/ready` makes an environment; `. .venv/bin/activate` puts it first on PATH."
        found.add(f"{program} on PATH", shutil.which(program), wrong, hint)
    return found


def _places(root: str) -> list[Path]:
    """Where steps write: the folders beneath the results, or of one that is not there yet the nearest above it."""
    folders = [Path(root, name) for name in ("", "logs", "benchmarks", "work")]
    return [
        next(place for place in (folder, *folder.absolute().parents) if place.exists() or place.is_symlink())
        for folder in folders
    ]


def blocked(root: str) -> Complaints:
    """What stands where folders of the results should be. Snakemake's plan ends in a traceback there."""
    found = Complaints()
    for there in dict.fromkeys(_places(root)):
        if not there.is_dir():
            found.add("results", str(there), "is no folder", "move it away, or set `results` to another folder.")
    return found


def unwritable(root: str) -> Complaints:
    """The folders of the results that cannot be written.

    A step whose log cannot be opened fails at once, but by then Snakemake has deleted its old outputs.
    """
    found = Complaints()
    for there in dict.fromkeys(_places(root)):
        if not os.access(there, os.W_OK | os.X_OK):
            found.add("results", str(there), "cannot be written", "mend its permissions, or set `results` elsewhere.")
        elif (free := shutil.disk_usage(there).free) < SPACE:
            found.add("results", str(there), f"only {free} bytes are free", "make space, or set `results` elsewhere.")
    return found


def prepare() -> None:
    """Set what every step inherits: UTF-8 whatever the locale, and a `python` that can run it.

    The environment that runs Snakemake comes first on PATH, unless the `python` there could run a step. So
    `.venv/bin/snakemake` works without activating anything.
    """
    os.environ["PYTHONUTF8"] = "1"
    own, found = Path(sys.executable).parent, shutil.which("python")
    if (found is None or Path(found).parent != own) and (found is None or lacking(found)):
        os.environ["PATH"] = os.pathsep.join([str(own), os.environ.get("PATH", os.defpath)])
