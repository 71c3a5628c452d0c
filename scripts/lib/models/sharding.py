"""How a training step's processes share the model: `data` gives each a full copy, DeepSpeed's ZeRO partitions it.

The mode is a runtime key, not a setting: in float32 only the last digits of a result depend on it. In bfloat16 the
modes round at different points: ZeRO computes with bfloat16 weights, averages gradients over processes in bfloat16,
accumulates them in float32, and updates a float32 copy in the optimizer; plain data parallelism trains float32 weights
under autocast. Results then agree only to bfloat16 precision.
The project imports DeepSpeed only in a step that uses it.
"""

import importlib
import importlib.util
import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

from scripts.lib.stage.digest import ROOT
from scripts.lib.stage.errors import InputError

FOLDER = ROOT / "config" / "deepspeed"


def config(mode: str) -> dict[str, Any] | None:
    """DeepSpeed's configuration for a mode; the trainer fills in its "auto" values. None for plain `data`."""
    if mode == "data":
        return None
    loaded: dict[str, Any] = json.loads((FOLDER / f"{mode}.json").read_text(encoding="utf-8"))
    return loaded


def prepare(mode: str, on_gpu: bool) -> None:
    """Set the environment that DeepSpeed reads on import, and let it join the process group.

    Raises InputError if it is not installed.
    """
    if not on_gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"  # accelerate imports DeepSpeed whatever the mode, and it would warn
    if mode == "data":
        return
    if importlib.util.find_spec("deepspeed") is None:
        raise InputError(
            f"sharding = {mode!r}, but deepspeed is not installed.\n"
            "Hint: pip install -r envs/requirements-train.txt, or set `sharding: data` under `resources`."
        )
    # It compiles an op at first use and looks for ninja on PATH, which lacks the environment unless it is activated.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    if "RANK" not in os.environ:
        # A single process that torchrun did not start: DeepSpeed needs a process group all the same.
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        alone = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in alone.items()})
    # Join now, reusing a group that exists: until then DeepSpeed assumes one process. Imported by name, so that its
    # version is in no code digest.
    backend = "nccl" if on_gpu else "gloo"
    importlib.import_module("deepspeed.comm").init_distributed(dist_backend=backend, auto_mpi_discovery=False)


def check(trainer: Any, mode: str) -> None:
    """Raise InputError unless the model is shared as asked: `accelerate launch` can drop DeepSpeed silently."""
    actual = trainer.accelerator.distributed_type.value
    if (mode != "data") != (actual == "DEEPSPEED"):
        raise InputError(
            f"sharding = {mode!r} was asked for, the trainer runs {actual}.\n"
            "Hint: start the step through scripts/lib/stage/launch.py, not through `accelerate launch`."
        )


def forget() -> None:
    """Load models normally from here on: under ZeRO-3 transformers would partition them over all processes."""
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()


def gathered(trainer: Any, trainable_only: bool) -> dict[str, Any] | None:
    """The full weights of a model that ZeRO-3 partitions, on the CPU of the first process; {} in the others.

    None if the model is not partitioned. All processes must call it together.
    """
    plugin = trainer.args.deepspeed_plugin
    if plugin is None or plugin.zero_stage != 3:
        return None
    engine = trainer.model_wrapped
    state: dict[str, Any] | None = engine._zero3_consolidated_16bit_state_dict(exclude_frozen_parameters=trainable_only)
    return state or {}
