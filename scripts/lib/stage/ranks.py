"""A step's processes: which one this is, how many there are, and one decision for all of them.

torchrun sets RANK, LOCAL_RANK and WORLD_SIZE (launch.py starts it). Without them there is one process.
The first process holds the step's lock, keeps its books and writes its artifact; the others only compute.
"""

import os
import sys
from datetime import timedelta
from importlib import import_module
from typing import Any, TypeVar

Value = TypeVar("Value")
# The first process may wait for an earlier build's step, or write for a long time. A dead one is torchrun's to notice.
PATIENCE = timedelta(days=7)


def _torch() -> Any:
    """torch, looked up when it is needed: stages that only read tables do without it, and without its pin."""
    return import_module("torch")


def count() -> int:
    """Processes of this step."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def number() -> int:
    """This process's number, from 0, over all nodes."""
    return int(os.environ.get("RANK", "0"))


def first() -> bool:
    """Whether this process keeps the books."""
    return number() == 0


def local() -> int:
    """This process's number on its node, which is also its GPU's."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def on_gpu(device: str) -> bool:
    """Whether a step computes on GPUs: it may, by `runtime.device`, and there are some."""
    return device != "cpu" and bool(_torch().cuda.is_available())


def join(with_gpus: bool) -> None:
    """Meet the other processes; does nothing for one alone."""
    if count() == 1:
        return
    torch = _torch()
    if with_gpus:
        torch.cuda.set_device(local())
    torch.distributed.init_process_group("nccl" if with_gpus else "gloo", timeout=PATIENCE)


def leave() -> None:
    """End what `join` began, or DeepSpeed in a process that is alone."""
    torch = sys.modules.get("torch")
    if torch and torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def wait() -> None:
    """Go on when every process has come here."""
    if count() > 1:
        _torch().distributed.barrier()


def agree(value: Value) -> Value:
    """The first process's value, in every process."""
    if count() == 1:
        return value
    values = [value]
    _torch().distributed.broadcast_object_list(values, src=0)
    return values[0]
