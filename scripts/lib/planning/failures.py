"""The end of a failed step's log, at the terminal: where a person looks, in every profile and under --quiet."""

import sys
from collections.abc import Container, Iterable
from pathlib import Path

LINES = 15
BYTES = 20_000  # more than fifteen lines, less than a log of days


def tail(log: Path) -> list[str]:
    """The last lines of a log; where there is none, or an empty one, what that means."""
    try:
        with log.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError as error:
        return [f"no log ({error.strerror}). Hint: can its folder be written, and is there space left on the disk?"]
    return lines[-LINES:] or ["the log is empty. Hint: is there space left on the disk?"]


def show(failed: Iterable[tuple[str, str]], steps: Container[str]) -> None:
    """Print the end of the log of each failed job, given as (rule, log).

    Rules that are not among `steps`, such as audit, tell the terminal what they find; an empty log of theirs is normal.
    """
    for rule, log in sorted(failed):
        if rule not in steps and Path(log).is_file() and not Path(log).stat().st_size:
            continue
        said = "\n".join(f"    {line}" for line in tail(Path(log)))
        print(f"{rule} failed; the end of {log}:\n{said}", file=sys.stderr, flush=True)
