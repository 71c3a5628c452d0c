"""Clocks that differ: told when a step starts, and kept from costing a finished step its outputs when it ends.

When a step has ended, Snakemake gives its outputs the present time, once on the node and once where Snakemake runs. It
deletes them if one of the inputs bears a later time (snakemake/dag.py, check_output_mtime; it allows no difference at
all). So a step is lost whose inputs were made under a clock that is ahead by more than has passed since. A network file
system stamps files by its server's clock, others by the node's.
"""

import os
import socket
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

# Seconds. Snakemake's own check allows none; a step takes longer than this, and file systems round to a second.
ALLOWANCE = 2.0
# What Snakemake takes for the time of a folder.
FOLDER_STAMP = ".snakemake_timestamp"
HINT = (
    "Hint: set the clocks of all machines by one source, for instance chrony; `chronyc tracking` shows the difference."
)


def difference(before: float, stamped: float, after: float) -> float:
    """Seconds that a file system's clock is ahead of this machine's, or behind (negative), as Unix times tell.

    A file written between `before` and `after` was stamped with `stamped`; between them there is no difference.
    """
    return stamped - after if stamped > after else min(0.0, stamped - before)


def present(folder: Path) -> float:
    """The time that a file in this folder is given now, as Snakemake will give it to outputs."""
    probe = folder / f".clock.{os.getpid()}"
    try:
        probe.touch()
        os.utime(probe)
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def stamps(inputs: Iterable[Path]) -> dict[Path, float]:
    """What Snakemake looks at of these inputs, with its time: the tables, and of folders their stamps and digests."""
    times = {}
    for path in inputs:
        stamp = path / FOLDER_STAMP
        for file in (stamp if stamp.exists() else path, path.with_name(f"{path.name}.sha256")):
            with suppress(FileNotFoundError):
                times[file] = file.lstat().st_mtime
    return times


def warnings(folder: Path, inputs: Iterable[Path]) -> list[str]:
    """Lines on clocks that differ by more than the allowance: the file system's, or the one that stamped an input."""
    host, before = socket.gethostname(), time.time()
    now = present(folder)
    lines = []
    if abs(ahead := difference(before, now, time.time())) > ALLOWANCE:
        where = "ahead of" if ahead > 0 else "behind"
        lines.append(f"the file system's clock is {abs(ahead):.0f} s {where} that of {host}")
    late = {file: time_of - now for file, time_of in stamps(inputs).items() if time_of - now > ALLOWANCE}
    if late:
        file = max(late, key=lambda name: late[name])
        more = f" and {len(late) - 1} more inputs" if len(late) > 1 else ""
        lines.append(f"{file}{more}: made {late[file]:.0f} s in the future by the clock of {host}")
    return lines


def bring_back(folder: Path, inputs: Iterable[Path]) -> list[Path]:
    """Give inputs that bear a later time than outputs can be given the present one; returns which.

    Nothing is made again for that: Snakemake compares what is in files whose times have changed.
    """
    times, brought = stamps(inputs), list[Path]()
    if not times:  # nothing is made yet, and perhaps no folder
        return brought
    now = present(folder)
    late = [file for file, time_of in times.items() if time_of > now]
    for file in late:
        with suppress(PermissionError):  # somebody else's; Snakemake will say so
            os.utime(file, (now, now), follow_symlinks=False)
            brought.append(file)
    return brought
