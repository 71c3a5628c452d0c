"""sbatch that does not give up when SLURM's controller is busy, and an account of what a build has submitted.

    python -m scripts.lib.planning.submit FOLDER --parsable --job-name … --comment … --wrap …

The SLURM plugin calls `sbatch` once per job and takes every failure for the job's. `stand_in` puts a program of that
name in front of SLURM's on PATH; it runs this module, which runs SLURM's own until it succeeds or fails for a reason
that waiting does not mend. A submission may arrive although its answer is lost, so the queue is looked through, and
answers, before a job is submitted again. FOLDER holds what is shared with Snakemake: `submitted`, the numbers of the
jobs, one a line, and `says`, a pipe to the person's terminal.
"""

import atexit
import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from scripts.lib.stage.digest import ROOT

# What sbatch says when the controller is busy, restarting or out of reach (slurm_errno.c and the C library).
TRANSIENT = re.compile(
    r"socket timed out|unable to contact slurm controller|unable to contact controller|zero bytes were transmitted|"
    r"resource temporarily unavailable|connection (?:refused|reset|timed out)|communication connection failure|"
    r"communication shutdown failure|message (?:send|receive) failure|backup controller in standby|"
    r"temporarily unable to accept job|transport endpoint is not connected|no route to host",
    re.IGNORECASE,
)
# Seconds between tries, doubled up to a limit; as patient in all as the profile is with status queries.
FIRST_PAUSE, LONGEST_PAUSE, PATIENCE = 5, 120, 1800
SECONDS_TO_ANSWER = 120
QUEUE = ["squeue", "--noheader", "--user", str(os.getuid()), "--format"]


def main(argv: list[str] | None = None) -> int:
    """Submit a job as sbatch would, and print its number; returns sbatch's exit code."""
    folder, *options = sys.argv[1:] if argv is None else argv
    given = sys.stdin.buffer.read() if "/dev/stdin" in options else b""
    path = os.pathsep.join(part for part in os.environ.get("PATH", "").split(os.pathsep) if part != folder)
    return submit(options, given, Path(folder), {**os.environ, "PATH": path})


def submit(options: list[str], given: bytes, folder: Path, environment: dict[str, str]) -> int:
    """Run SLURM's sbatch, again after failures that pass; print what it printed last, and return its exit code."""
    command = [shutil.which("sbatch", path=environment["PATH"]) or "sbatch", *options]
    comment = _option(options, "--comment")
    give_up, pause = time.monotonic() + PATIENCE, FIRST_PAUSE
    code, said, wrong = _run(command, given, environment)
    while code != 0 and TRANSIENT.search(wrong) and time.monotonic() + pause < give_up:
        _say(folder, f"sbatch: {' '.join(wrong.split())}; {comment} is tried again in {pause} s")
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)
        silent, queue, _ = _run([*QUEUE, "%F %j %k", "--states", "all"], b"", environment)
        if silent:
            continue
        if found := arrived(queue, _option(options, "--job-name"), comment, _lines(folder / "submitted")):
            _say(folder, f"sbatch: {comment} had arrived as job {found}")
            code, said, wrong = 0, f"{found}\n", ""
        else:
            code, said, wrong = _run(command, given, environment)
    if code == 0:
        with (folder / "submitted").open("a", encoding="utf-8") as file:
            file.write(f"{said.split(';')[0].strip()}\n")
    sys.stdout.write(said)
    sys.stderr.write(wrong)
    return code


def arrived(queue: str, name: str, comment: str, known: list[str]) -> str:
    """The number of a job in the queue that has this name and comment and was not known before; "" for none.

    `queue` has a line `NUMBER NAME COMMENT` per job. The plugin names all jobs of a build alike, and comments on each
    by its rule and wildcards; jobs that a build submitted before for the same step are known by their numbers.
    """
    for line in queue.splitlines():
        number, _, rest = line.strip().partition(" ")
        if rest.split(" ", 1) == [name, comment] and number not in known:
            return number
    return ""


def _option(options: list[str], name: str) -> str:
    """The value of one of sbatch's options, given as the next word; "" where it is missing."""
    return options[options.index(name) + 1] if name in options[:-1] else ""


def _run(command: list[str], given: bytes, environment: dict[str, str]) -> tuple[int, str, str]:
    """(exit code, output, errors) of a command; one that hangs counts as timed out."""
    try:
        done = subprocess.run(
            command, input=given, env=environment, capture_output=True, timeout=SECONDS_TO_ANSWER, check=False
        )
    except subprocess.TimeoutExpired:
        return 1, "", f"Socket timed out: no answer within {SECONDS_TO_ANSWER} s\n"
    return done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")


def _lines(path: Path) -> list[str]:
    """A file's lines; none where there is no file."""
    return path.read_text(encoding="utf-8").split() if path.exists() else []


def _say(folder: Path, text: str) -> None:
    """A line on the terminal of the person whose Snakemake listens."""
    with contextlib.suppress(OSError):  # nobody listens
        pipe = os.open(folder / "says", os.O_WRONLY | os.O_NONBLOCK)
        with os.fdopen(pipe, "w") as listener:
            listener.write(f"{text}\n")


# Where Snakemake runs


def stand_in() -> None:
    """Put the patient sbatch first on this process's PATH, relay what it says, and see to its jobs at the end."""
    parent = Path(".snakemake").absolute()
    parent.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=parent, prefix="sbatch."))
    program = folder / "sbatch"
    module = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from scripts.lib.planning import submit; "
    start = shlex.join([sys.executable, "-c", f"{module}sys.exit(submit.main())", str(folder)])
    program.write_text(f'#!/bin/sh\nexec {start} "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    os.mkfifo(folder / "says")
    threading.Thread(target=_relay, args=(folder / "says",), daemon=True).start()
    os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ.get('PATH', '')}"
    atexit.register(_leave, folder)


def _relay(pipe: Path) -> None:
    """Print what comes through a pipe; it is opened for writing too, so that it never ends."""
    with os.fdopen(os.open(pipe, os.O_RDWR)) as lines:
        for line in lines:
            print(line, end="", file=sys.stderr, flush=True)


def _leave(folder: Path) -> None:
    """Cancel what this build has submitted and left behind, and say so; with nothing left, say nothing.

    A build that ends as it should, or that Ctrl-C has cancelled, leaves nothing. One that fails in between does.
    """
    numbers = _lines(folder / "submitted")
    shutil.rmtree(folder, ignore_errors=True)
    if not numbers:
        return
    code, queue, wrong = _run([*QUEUE, "%F %T"], b"", {**os.environ})
    jobs = sorted({*numbers} & {*active(queue)}, key=int) if code == 0 else numbers
    if not jobs:
        return
    if code == 0:
        code, _, wrong = _run(["scancel", *jobs], b"", {**os.environ})
    if code == 0:
        print(f"cancelled what this build left in the queue: jobs {' '.join(jobs)}", file=sys.stderr)
    else:
        print(
            f"SLURM does not answer ({' '.join(wrong.split())}); these jobs may still run: {' '.join(jobs)}\n"
            f"Hint: `scancel {' '.join(jobs)}` ends them. Started again, the build waits for steps that still run.",
            file=sys.stderr,
        )


def active(queue: str) -> list[str]:
    """The numbers of jobs that wait or run, from lines `NUMBER STATE`; those that are ending are not among them."""
    return [number for number, state, *_ in map(str.split, queue.splitlines()) if state != "COMPLETING"]


def left_by_others() -> list[str]:
    """The numbers of queued jobs that another Snakemake submitted from this folder; none if SLURM does not answer."""
    code, queue, _ = _run([*QUEUE, "%F %j %k %Z"], b"", {**os.environ})
    return submitted_from(queue, str(Path.cwd())) if code == 0 else []


def submitted_from(queue: str, folder: str) -> list[str]:
    """The numbers of a folder's jobs, from lines `NUMBER NAME COMMENT FOLDER`; the plugin's comments name a rule."""
    lines = [line.strip().split(" ", 3) for line in queue.splitlines()]
    return sorted({words[0] for words in lines if words[3:] == [folder] and words[2].startswith("rule_")}, key=int)


if __name__ == "__main__":
    sys.exit(main())
