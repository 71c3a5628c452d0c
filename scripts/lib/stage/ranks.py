"""A step's processes: which one this is, how many there are, and one decision for all of them.

torchrun sets RANK, LOCAL_RANK and WORLD_SIZE, if launch.py has started it. Otherwise there is one process, whatever a
pod, a login shell or another job has left in the environment: `forget` takes that out before a library reads it.
The first process holds the step's lock, keeps its books and writes its artifact; the others only compute.
"""

import os
import sys
from collections.abc import MutableMapping
from datetime import timedelta
from importlib import import_module
from typing import Any, TypeVar

Value = TypeVar("Value")
# The first process may wait for an earlier build's step, or write for a long time. A dead one is torchrun's to notice.
PATIENCE = timedelta(days=7)

# The number of the process that became torchrun. Its workers are its children, so that nobody inherits it by accident.
LAUNCHER = "OUROBOROS_LAUNCHER"

# What torch, accelerate, transformers, DeepSpeed and vLLM read to learn which process this is, how many there are, how
# they share a model, or in which precision; all of it is for the launcher and the configuration to say.
NAMES = frozenset(
    "RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE LOCAL_SIZE NODE_RANK GROUP_RANK GROUP_WORLD_SIZE ROLE_RANK ROLE_NAME "
    "ROLE_WORLD_SIZE CROSS_RANK CROSS_SIZE MASTER_ADDR MASTER_PORT MPI_LOCALRANKID MPI_LOCALNRANKS SM_TRAINING_ENV "
    "SM_HP_MP_PARAMETERS SM_FRAMEWORK_PARAMS SMDATAPARALLEL_LOCAL_RANK AZUREML_EXPERIMENT_ID DLTS_JOB_ID".split()
)
PREFIXES = (
    *("TORCHELASTIC_", "TORCH_ELASTIC_", "PET_", "ACCELERATE_", "FSDP_", "MEGATRON_LM_", "PARALLELISM_CONFIG_", "DS_"),
    *("PMI_", "PMIX_", "OMPI_COMM_WORLD_", "MV2_COMM_WORLD_", "VLLM_DP_"),
)
# How DeepSpeed compiles its kernels on this machine is for the machine to say.
KEPT = ("DS_BUILD_", "DS_SKIP_CUDA_CHECK", "DS_IGNORE_CUDA_DETECTION")


def forget(environment: MutableMapping[str, str]) -> list[str]:
    """Take out of an environment what it says of processes; returns the names of what was there, sorted."""
    found = sorted(
        name for name in environment if name in NAMES or (name.startswith(PREFIXES) and not name.startswith(KEPT))
    )
    for name in found:
        del environment[name]
    return found


def launched() -> bool:
    """Whether this is one of the processes of a torchrun that launch.py has started."""
    return os.environ.get(LAUNCHER) == str(os.getppid())


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
