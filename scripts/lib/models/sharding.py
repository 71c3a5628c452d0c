"""How a training step's processes share the model: each holds all of it, or DeepSpeed's ZeRO spreads it over them.

A strategy is a runtime matter: in float32 only the last digits of a result depend on it. In bfloat16 what is rounded
differs: ZeRO computes with bfloat16 weights, averages gradients over processes in bfloat16, adds them up in float32,
and steps on a float32 copy in the optimizer; plain data parallelism trains float32 weights under autocast. Results are
then as near as bfloat16 lets them be.
DeepSpeed is imported by nothing but a step that is asked to use it.
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


def config(strategy: str) -> dict[str, Any] | None:
    """DeepSpeed's configuration of a strategy, with what the trainer fills in as "auto"; None for plain `data`."""
    if strategy == "data":
        return None
    loaded: dict[str, Any] = json.loads((FOLDER / f"{strategy}.json").read_text())
    return loaded


def prepare(strategy: str, on_gpu: bool) -> None:
    """Set the environment that DeepSpeed reads when it is imported, and have it join the processes.

    Raises InputError if it is not installed.
    """
    if not on_gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"  # accelerate imports it in any case, and it would warn
    if strategy == "data":
        return
    if importlib.util.find_spec("deepspeed") is None:
        raise InputError(
            f"strategy = {strategy!r}, but deepspeed is not installed.\n"
            "Hint: pip install -r envs/requirements-train.txt, or set `strategy: data` under `resources`."
        )
    # It compiles an op at first use and looks for ninja on PATH, where an environment that is not activated is not.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    if "RANK" not in os.environ:
        # One process that torchrun has not started: DeepSpeed wants a group all the same.
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        alone = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in alone.items()})
    # At once, on the group that there may be: before that, DeepSpeed takes the number of processes for one. Imported by
    # name, so that its version stands in no digest of code.
    backend = "nccl" if on_gpu else "gloo"
    importlib.import_module("deepspeed.comm").init_distributed(dist_backend=backend, auto_mpi_discovery=False)


def check(trainer: Any, strategy: str) -> None:
    """Raise InputError unless the model is shared as asked: `accelerate launch` can drop DeepSpeed silently."""
    found = trainer.accelerator.distributed_type.value
    if (strategy != "data") != (found == "DEEPSPEED"):
        raise InputError(
            f"strategy = {strategy!r} was asked for, the trainer runs {found}.\n"
            "Hint: start the step through scripts/lib/stage/launch.py, not through `accelerate launch`."
        )


def forget() -> None:
    """Load models as usual from here on: under ZeRO-3 transformers would share them out over all processes."""
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()


def gathered(trainer: Any, trainable_only: bool) -> dict[str, Any] | None:
    """The weights that ZeRO-3 has spread, whole, on the CPU of the first process; {} elsewhere. None if not spread.

    All processes must call it together.
    """
    plugin = trainer.args.deepspeed_plugin
    if plugin is None or plugin.zero_stage != 3:
        return None
    engine = trainer.model_wrapped
    found: dict[str, Any] | None = engine._zero3_consolidated_16bit_state_dict(exclude_frozen_parameters=trainable_only)
    return found or {}
