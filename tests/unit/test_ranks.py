"""How many processes there are is the launcher's to say, whatever a pod or a shell has left in the environment."""

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from scripts import select_pairs
from scripts.lib.stage import launch, ranks
from scripts.lib.stage.digest import ROOT
from tests.unit.conftest import RUNTIME
from tests.unit.test_select_pairs import SETTINGS, preference

# What Kubeflow, torchrun, accelerate, MPI, SageMaker and SLURM's srun leave behind, and what people export.
HOSTILE = {
    "WORLD_SIZE": "8",
    "RANK": "3",
    "LOCAL_RANK": "3",
    "LOCAL_WORLD_SIZE": "8",
    "NODE_RANK": "1",
    "GROUP_RANK": "1",
    "ROLE_RANK": "3",
    "MASTER_ADDR": "nowhere.invalid",
    "MASTER_PORT": "none",
    "TORCHELASTIC_RUN_ID": "other",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
    "TORCHELASTIC_RESTART_COUNT": "5",
    "PET_NNODES": "4:8",
    "PET_NPROC_PER_NODE": "gpu",
    "PET_RDZV_BACKEND": "c10d",
    "PET_RDZV_ENDPOINT": "nowhere.invalid:1",
    "PET_MASTER_ADDR": "nowhere.invalid",
    "PET_NO_PYTHON": "1",
    "PET_MAX_RESTARTS": "99",
    "ACCELERATE_USE_DEEPSPEED": "true",
    "ACCELERATE_USE_FSDP": "true",
    "ACCELERATE_MIXED_PRECISION": "fp16",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "7",
    "ACCELERATE_TORCH_DEVICE": "meta",
    "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3",
    "ACCELERATE_DYNAMO_BACKEND": "INDUCTOR",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "PARALLELISM_CONFIG_TP_SIZE": "2",
    "DS_ACCELERATOR": "hpu",
    "PMI_RANK": "3",
    "PMI_SIZE": "8",
    "PMIX_RANK": "3",
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "8",
    "OMPI_COMM_WORLD_LOCAL_RANK": "3",
    "MV2_COMM_WORLD_SIZE": "8",
    "MPI_LOCALRANKID": "3",
    "SMDATAPARALLEL_LOCAL_RANK": "0",
    "SM_TRAINING_ENV": "{}",
    "AZUREML_EXPERIMENT_ID": "1",
    "VLLM_DP_RANK": "1",
    "OUROBOROS_LAUNCHER": "1",
}
# What a person sets on purpose, and the launcher and SLURM themselves.
HARMLESS = {
    "CUDA_VISIBLE_DEVICES": "0", "NCCL_DEBUG": "INFO", "DS_SKIP_CUDA_CHECK": "1", "DS_BUILD_OPS": "0", "FRANK": "1",
    "SLURM_PROCID": "0", "SLURM_NODEID": "0", "OMP_NUM_THREADS": "1", "HF_TOKEN": "x",
    "TORCH_NCCL_TRACE_BUFFER_SIZE": "9", "OMPI_MCA_btl": "tcp", "DSTACK_NODE_RANK": "1", "OUROBOROS_LAUNCHER": "1",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(HOSTILE.keys() - {"OUROBOROS_LAUNCHER"}))
@pytest.mark.parametrize("value", ["", "8"])
def test_each_variable_that_speaks_of_processes_is_taken_out(name, value):
    environment = HARMLESS | {name: value}
    assert ranks.forget(environment) == [name]
    assert environment == HARMLESS


def test_what_the_libraries_read_of_processes_is_on_the_list():
    """The names in the libraries' own source, so that a new version of one cannot add one in silence."""
    pattern = re.compile(
        r"[\"']((?:[A-Z][A-Z0-9_]*_)?(?:RANK|WORLD_SIZE|MASTER_ADDR|MASTER_PORT|LOCAL_SIZE|LOCALRANKID|LOCALNRANKS))[\"']"
    )
    places = ["accelerate", "accelerate/utils", "deepspeed/comm", "transformers", "transformers/integrations"]
    places += ["torch/distributed", *(f"torch/distributed/elastic/{name}" for name in ("agent/server", "rendezvous"))]
    site_packages = Path(find_spec("accelerate").origin).parents[1]
    files = [file for place in places for file in (site_packages / place).glob("*.py")]
    read = {name for file in files for name in pattern.findall(file.read_text())}
    read -= {"TORCH_DISTRIBUTED_COMPILE_ON_ONE_RANK"}  # of the compiler, and no number
    assert {"RANK", "WORLD_SIZE", "LOCAL_RANK", "PMI_RANK", "MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE"} <= read
    assert ranks.forget(dict.fromkeys(read, "1")) == sorted(read)


def stage(tmp_path, write, **environment):
    """A small stage in a process of its own, started plainly in an environment: the finished process."""
    table = write(tmp_path / "data.parquet", [preference(1)], "PREFERENCES")
    words = [sys.executable, "-m", "scripts.select_pairs", "--settings", json.dumps(SETTINGS), "--runtime"]
    words += [json.dumps(RUNTIME), "--dataset", str(table), "--output", str(tmp_path / "pairs.parquet")]
    return subprocess.run(
        words, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize("environment", [{"WORLD_SIZE": "8"}, {"WORLD_SIZE": ""}, {"RANK": "x"}, HOSTILE])
def test_a_stage_that_is_started_plainly_is_alone(tmp_path, write, environment):
    done = stage(tmp_path, write, **environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads((tmp_path / "pairs.run.json").read_text())["processes"] == 1
    names = ", ".join(sorted(environment.keys() - {"OUROBOROS_LAUNCHER"}))
    assert f"ignored, because the launcher alone decides on processes: {names} of the environment\n" in done.stderr


def test_nothing_is_said_where_nothing_is_inherited(tmp_path, write):
    done = stage(tmp_path, write, **HARMLESS)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "ignored" not in done.stderr


def test_the_launcher_forgets_before_it_starts_anything(monkeypatch):
    started = {}
    monkeypatch.setattr(launch.os, "execvp", lambda *_: started.update(os.environ))
    for name, value in HOSTILE.items():
        monkeypatch.setenv(name, value)
    for library in ("OMP", "MKL", "OPENBLAS"):
        monkeypatch.setenv(f"{library}_NUM_THREADS", "1")
    launch.main(["--processes", "2", "--threads", "2", "scripts.train_dpo"])
    assert HOSTILE.keys() & started.keys() == {"OUROBOROS_LAUNCHER"}
    assert started["OUROBOROS_LAUNCHER"] == str(os.getpid())


def test_a_stage_in_this_process_is_alone_too(tmp_path, write, run_stage, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "8")
    table = write(tmp_path / "data.parquet", [preference(1)], "PREFERENCES")
    assert run_stage(select_pairs, SETTINGS, tmp_path / "pairs.parquet", dataset=table)[0] == 0
    assert "WORLD_SIZE" not in os.environ
