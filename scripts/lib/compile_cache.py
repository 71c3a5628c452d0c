"""vLLM's cache of compiled kernels, shared safely by engines that start at the same time.

The cache lies in vLLM's own folder: $VLLM_CACHE_ROOT, or `vllm` in $XDG_CACHE_HOME, which a site may point to its
scratch.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scripts.lib.artifact import canonical_json
from scripts.lib.digest import text_sha256
from scripts.lib.progress import progress

# What differs between engines that compile the same code.
NOT_COMPILED = ("model", "seed", "gpu_memory_utilization")


def folder() -> Path:
    """Where vLLM keeps what it compiles."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("VLLM_CACHE_ROOT") or Path(cache) / "vllm")


@contextmanager
def first_compiles(architecture: Path, arguments: dict[str, Any], version: str) -> Iterator[None]:
    """Let one engine of an architecture start alone, and the others once it has filled the cache.

    `architecture` is the model's config.json: weights do not matter to what is compiled. If the first one fails, the
    next one tries.
    """
    decisive = {name: value for name, value in arguments.items() if name not in NOT_COMPILED}
    key = text_sha256(f"{version} {architecture.read_text()} {canonical_json(decisive)}")[:16]
    done, lock = folder() / f"ouroboros-{key}.done", folder() / f"ouroboros-{key}.lock"
    if done.exists():
        yield
        return
    folder().mkdir(parents=True, exist_ok=True)
    with lock.open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("another engine of this architecture compiles first; waiting for it")
            fcntl.flock(held, fcntl.LOCK_EX)
        if done.exists():
            fcntl.flock(held, fcntl.LOCK_UN)  # the others wait no longer either
            yield
        else:
            yield
            done.touch()
            fcntl.flock(held, fcntl.LOCK_UN)  # at once, whatever processes the engine has started with this file open
