"""vLLM's cache of compiled kernels, shared safely by engines that start at the same time.

The cache lies in vLLM's own folder: $VLLM_CACHE_ROOT, or `vllm` in $XDG_CACHE_HOME, which a site may point to its
scratch.
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

# What differs between engines that share what they compile. The model's folder is not among it: vLLM keys by that too.
NOT_COMPILED = ("seed", "gpu_memory_utilization")


def folder() -> Path:
    """Where vLLM keeps what it compiles."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("VLLM_CACHE_ROOT") or Path(cache) / "vllm")


@contextmanager
def first_compiles(architecture: Path, arguments: dict[str, Any], version: str, processor: str) -> Iterator[None]:
    """Let one engine of a model start alone on a kind of GPU, and the others once it has filled the cache.

    `architecture` is the model's config.json: the weights in its folder do not matter to what is compiled, the folder
    does. `processor` is the GPU's name. If the first one fails, the next one tries.
    """
    decisive = {name: value for name, value in arguments.items() if name not in NOT_COMPILED}
    key = text_sha256(f"{version} {processor} {architecture.read_text()} {canonical_json(decisive)}")[:16]
    done, lock = folder() / f"ouroboros-{key}.done", folder() / f"ouroboros-{key}.lock"
    if done.exists():
        yield
        return
    folder().mkdir(parents=True, exist_ok=True)
    with lock.open("w") as held:
        _acquire(held)
        if done.exists():
            _release(held)  # the others wait no longer either
            yield
        else:
            yield
            done.touch()
            _release(held)  # at once, whatever processes the engine has started with this file open


def _acquire(held: IO[str]) -> None:
    """Wait for the lock; where the file system has none, go on without: at worst an engine compiles again."""
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        progress("another engine of this model compiles first; waiting for it")
        fcntl.flock(held, fcntl.LOCK_EX)
    except OSError as error:
        progress(f"{folder()}: no flock ({error.strerror}); engines that start together may all compile")


def _release(held: IO[str]) -> None:
    with suppress(OSError):  # what could not be locked
        fcntl.flock(held, fcntl.LOCK_UN)
