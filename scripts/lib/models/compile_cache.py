"""vLLM's cache of compiled kernels, shared safely by engines that start at the same time.

The cache is in vLLM's own folder: $VLLM_CACHE_ROOT, or `vllm` in $XDG_CACHE_HOME, which a site may point to its
scratch file system.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from scripts.lib.stage.artifact import canonical_json
from scripts.lib.stage.digest import text_sha256
from scripts.lib.stage.progress import progress

# Arguments that may differ between engines that share compiled kernels. The model's folder may not: vLLM's own cache
# key includes it.
NOT_COMPILED = ("seed", "gpu_memory_utilization")


def folder() -> Path:
    """The folder of vLLM's compiled kernels."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("VLLM_CACHE_ROOT") or Path(cache) / "vllm")


@contextmanager
def first_compiles(architecture: Path, arguments: dict[str, Any], version: str, processor: str) -> Iterator[None]:
    """Let one engine for a model and GPU type start alone; the others start once it has filled the cache.

    `architecture` is the model's config.json; its folder decides what is compiled, the weights in it do not.
    `processor` is the GPU's name. If the first engine fails, the next one tries.
    """
    decisive = {name: value for name, value in arguments.items() if name not in NOT_COMPILED}
    shape = architecture.read_text(encoding="utf-8")
    key = text_sha256(f"{version} {processor} {shape} {canonical_json(decisive)}")[:16]
    done, lock = folder() / f"ouroboros-{key}.done", folder() / f"ouroboros-{key}.lock"
    if done.exists():
        yield
        return
    folder().mkdir(parents=True, exist_ok=True)
    with lock.open("wb") as held:
        _acquire(held)
        if done.exists():
            _release(held)  # the cache is filled, so the others need not wait either
            yield
        else:
            yield
            done.touch()
            _release(held)  # explicitly: processes that the engine started may keep the file open


def _acquire(held: IO[bytes]) -> None:
    """Wait for the lock. Continue without it if the file system has no locks: at worst an engine compiles again."""
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        progress("waiting for another engine of this model to compile first")
        fcntl.flock(held, fcntl.LOCK_EX)
    except OSError as error:
        progress(f"{folder()}: no flock ({error.strerror}); engines that start together may all compile")


def _release(held: IO[bytes]) -> None:
    with suppress(OSError):  # not locked: the file system has no locks
        fcntl.flock(held, fcntl.LOCK_UN)
