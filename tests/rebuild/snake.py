"""Snakemake without its imports: each call is a process of its own, forked from one that has imported it already.

A dry run costs a third of what the command does. What runs is `snakemake.cli.main`, the command's own entry.
"""

import multiprocessing
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FORKS = multiprocessing.get_context("forkserver")
# The rest is what Snakemake imports late, and what a plan of this project needs.
LATE = [
    "snakemake.profiles",
    "snakemake.report.html_reporter",
    "snakemake.storage",
    "smart_open",
    "jsonschema",
    "pydantic",
    "yaml",
]
FORKS.set_forkserver_preload(["pytest", "snakemake.cli", *LATE])


def snakemake(checkout: Path, output: Path, *arguments: str, **environment: str) -> int:
    """Run Snakemake in a checkout; what it says goes to the file `output`. Returns its exit code."""
    process = FORKS.Process(target=_run, args=(checkout, output, arguments, environment))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def _run(checkout: Path, output: Path, arguments: tuple[str, ...], environment: dict[str, str]) -> None:
    from snakemake.cli import main

    with output.open("wb") as file, Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    os.chdir(checkout)
    os.environ.update(environment)
    # The checkout's own modules are to be found, not those that the tests are run from.
    assert not [name for name in sys.modules if name.split(".")[0] == "scripts"]
    sys.path[:] = [entry for entry in sys.path if entry and Path(entry).resolve() != ROOT]
    sys.argv = ["snakemake", *arguments]
    main(list(arguments))
