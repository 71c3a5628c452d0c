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
    # Not the process's own code: of two threads that start and join processes, one may read the other's, and get none.
    return int(ending(output).read_text())


def ending(output: Path) -> Path:
    """The file with the exit code of what has written `output`."""
    return output.with_name(f"{output.name}.exit")


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
    try:
        main(list(arguments))
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(bool(ended.code))
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
        ending(output).write_text(str(code))
