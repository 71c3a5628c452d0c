"""A step's work folder: a lock that dies with its holder, and what has been finished when a step is killed.

It lies under {results}/work, outside every declared output, because Snakemake deletes those before it starts a step
again. What is kept there belongs to one fingerprint (settings, code, inputs); for another one it is thrown away.
"""

import fcntl
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scripts.lib.stage import artifact
from scripts.lib.stage.errors import InputError
from scripts.lib.stage.progress import progress

LOCK = "lock"
FINGERPRINT = "fingerprint.json"


@contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Hold a step's work folder alone, waiting for whoever holds it; gives the number of holders waited for.

    The folder goes when the block ends well, or ends with an error and nothing finished in it.

    A killed Snakemake can leave its step running. That orphan holds the lock until it ends or is killed; the kernel
    releases it then, whatever happens. (On network file systems flock must be enabled; NFS and Lustre can.)
    """
    waited = 0
    while True:
        if (descriptor := _opened(folder)) is None:
            continue
        try:
            waited += _acquire(descriptor, folder)
            if _still_there(descriptor, folder / LOCK):
                _sign(descriptor)
                try:
                    yield waited
                except BaseException:
                    if not _kept(folder):
                        _tidy(folder)
                    raise
                _tidy(folder)
                return
        finally:
            os.close(descriptor)


@contextmanager
def borrowed(folder: Path) -> Iterator[bool]:
    """Hold another step's work folder if nobody does, without waiting; gives whether it is held.

    What is put into it is left for its own step.
    """
    if (descriptor := _opened(folder)) is None:
        yield False
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held = _still_there(descriptor, folder / LOCK)
        if held:
            _sign(descriptor)
    except OSError:  # held by another, or a file system without locks, of which the folder's own step tells
        held = False
    try:
        yield held
    finally:
        os.close(descriptor)


def _opened(folder: Path) -> int | None:
    """The lock file of a folder, both made where missing; None if a neighbour who is done clears it, or what is above.

    A folder that goes while it is made looks missing at one moment and there at the next, so both errors mean that.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except FileNotFoundError:
        return None
    except FileExistsError as error:
        place = Path(error.filename)
        if place.is_file() or place.is_symlink():  # what stands where a folder should be, or leads nowhere, stays
            raise
        return None


def _sign(descriptor: int) -> None:
    """Say who holds a lock."""
    os.truncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)


def _kept(folder: Path) -> list[Path]:
    """What a step has finished: all that is not bookkeeping."""
    return [path for path in folder.iterdir() if path.name not in (LOCK, FINGERPRINT)]


def _acquire(descriptor: int, folder: Path) -> int:
    """Wait for a lock; 1 if another process held it. Raises InputError for a file system without locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 1000, 0).decode().strip() or "another process"  # by name it may be gone by now
        progress(f"{holder} is making this, left by an earlier build or for several shards; waiting for it")
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        return 1
    except OSError as error:
        raise InputError(
            f"{folder}: its file system has no flock ({error.strerror}), which keeps two steps from writing alongside "
            "each other\nHint: mount it with flock (Lustre: -o flock; NFS: version 4), or set `results` to a folder "
            "of another file system."
        ) from error
    return 0


def _still_there(descriptor: int, path: Path) -> bool:
    """Whether the locked file is the one at `path`, not one that its last holder has removed."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def claim(folder: Path, fingerprint: dict[str, Any]) -> None:
    """Keep what the folder holds if it was made for this fingerprint; otherwise start clean and say so."""
    listing = folder / FINGERPRINT
    recorded = None
    if listing.exists():
        try:
            recorded = artifact.read_json(listing)
        except InputError:
            recorded = {}
    kept = _kept(folder)
    if recorded == fingerprint:
        if kept:
            progress(f"continuing with what an interrupted step left in {folder}")
        return
    if kept:
        differing = sorted(key for key in fingerprint if (recorded or {}).get(key) != fingerprint[key])
        progress(f"{folder}: left by a step with other {', '.join(differing)}; starting clean")
    for path in kept:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    artifact.write_json(listing, fingerprint)


def _tidy(folder: Path) -> None:
    """Clear the folder of a step that has ended; what cannot be removed must not change how it ended."""
    try:
        clear(folder)
    except OSError as error:
        progress(f"{folder}: not removed ({error}); it holds nothing that is still needed")


def clear(folder: Path) -> None:
    """Remove the folder of a step that is done, and the empty folders above it, up to the results.

    What cannot go yet stays, empty: NFS keeps a lock file that is open, and another engine may just have looked in.
    """
    for path in folder.iterdir():
        if path.name != LOCK:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    (folder / LOCK).unlink()
    for place in (folder, *folder.parents):
        try:
            place.rmdir()
        except OSError:  # not empty
            return
        if place.name == "work":
            return
