"""GPUs of one machine, handed out by slots: Snakemake counts how many are in use, but not which.

A slot is a file lock. The step's process inherits it (torchrun's, where there are several), so it is given back when
that ends, whatever ends it. Two builds on one machine share the slots of their user.
"""

import fcntl
import os
import subprocess
import tempfile
import time
from pathlib import Path

from scripts.lib.stage.progress import progress

WAIT_SECONDS = 1.0
DEVICES = Path("/dev")  # where the driver puts nvidia0, nvidia1, …


def folder() -> Path:
    """Where the locks lie: on the machine itself, because GPUs are."""
    return Path(tempfile.gettempdir()) / f"ouroboros-gpus-{os.getuid()}"


def visible() -> list[str]:
    """The GPUs that this process may use: CUDA_VISIBLE_DEVICES, or all that the driver lists; none without a driver.

    Raises SystemExit if there are GPUs that cannot be listed: steps side by side would all take the first one.
    """
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        return [name.strip() for name in listed.split(",") if name.strip()]
    try:
        shown = subprocess.run(
            ["nvidia-smi", "--list-gpus"], check=True, capture_output=True, encoding="utf-8", timeout=60
        )
    except (OSError, subprocess.SubprocessError) as error:
        if devices := sorted(path.name for path in DEVICES.glob("nvidia[0-9]*")):
            raise SystemExit(
                f"{', '.join(devices)} in {DEVICES}, but they cannot be listed: {error}\n"
                "Hint: set CUDA_VISIBLE_DEVICES to the GPUs that may be used, such as 0,1; empty for none."
            ) from error
        return []
    return [str(i) for i, line in enumerate(shown.stdout.splitlines()) if line.startswith("GPU ")]


def take(wanted: int) -> list[int]:
    """Wait for `wanted` free GPUs, make only them visible, and keep their locks open for the processes that follow.

    Returns the descriptors of the locks. On a machine without GPUs nothing is taken; the stage then uses the
    processor, or says that it cannot. Raises SystemExit if the machine has GPUs, but fewer than wanted, or such as
    cannot be listed.
    """
    names = visible()
    if not names:
        return []
    if len(names) < wanted:
        raise SystemExit(f"{wanted} GPUs are asked for, {len(names)} are visible\nHint: lower gpus under `resources`.")
    folder().mkdir(mode=0o700, exist_ok=True)
    waited = False
    while True:
        held: dict[str, int] = {}
        for name in names:
            if len(held) < wanted and (descriptor := _try(name)) is not None:
                held[name] = descriptor
        if len(held) == wanted:
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(held)
            return list(held.values())
        # All or none: two steps that each hold half of what they want would wait for each other for ever.
        for descriptor in held.values():
            os.close(descriptor)
        if not waited:
            progress(f"waiting for {wanted} of {len(names)} GPUs")
            waited = True
        time.sleep(WAIT_SECONDS)


def _try(name: str) -> int | None:
    """The lock of one GPU, inheritable, or None if another process holds it."""
    descriptor = os.open(folder() / f"{name.replace('/', '_')}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError as error:
        raise SystemExit(
            f"{folder()}: its file system has no flock ({error.strerror}), by which steps share out the GPUs\n"
            "Hint: let TMPDIR name a folder on this machine's own disk."
        ) from error
    os.set_inheritable(descriptor, True)
    return descriptor
