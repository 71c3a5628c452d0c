"""The launcher: its commands as pure functions, and two processes that train one model."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from scripts.lib.models import training
from scripts.lib.stage import launch
from scripts.lib.stage.digest import ROOT
from scripts.lib.stage.errors import InputError
from tests.unit.conftest import RUNTIME
from tests.unit.steps import STEPS
from tests.unit.test_ranks import HOSTILE

STAGE = ["scripts.train_dpo", "--settings", "{}"]


def test_several_processes_on_a_node_meet_by_themselves():
    assert launch.torchrun(8, STAGE) == [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "8", "--standalone", "--module", "--"),
        *STAGE,
    ]


def test_over_nodes_every_node_knows_its_rank_and_where_the_first_one_is():
    assert launch.torchrun(8, STAGE, nodes=2, node=1, head="gpu03", job=1234567) == [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "8", "--nnodes", "2", "--node-rank", "1"),
        *("--master-addr", "gpu03", "--master-port", "24567", "--module", "--"),
        *STAGE,
    ]


def test_srun_starts_one_task_on_every_node_and_takes_all_down_with_the_first_that_fails():
    assert launch.srun(2, 8, 64, ["x"]) == [
        *("srun", "--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--cpus-per-task=64", "--mem=0"),
        *("--kill-on-bad-exit=1", "--wait=0", "--export=ALL", "--gres=gpu:8", "x"),
    ]
    assert "--gres=gpu:0" not in launch.srun(2, 0, 1, ["x"])


def test_several_nodes_outside_a_job_are_refused(monkeypatch, capsys):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert launch.main(["--nodes", "2", *STAGE]) == 2
    assert "Hint: use --profile slurm" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("nodes", "gpus", "environment", "said"),
    [
        (1, 8, {"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"}, ""),
        (1, 8, {"CUDA_VISIBLE_DEVICES": "0,1"}, "8 GPUs on this node were asked for, 2 granted"),
        (2, 1, {"CUDA_VISIBLE_DEVICES": "3", "SLURM_NNODES": "1"}, "2 nodes were asked for, 1 granted"),
        (2, 0, {"SLURM_NNODES": "2"}, ""),
        # Left by the shell of the person who submitted: nobody asked for GPUs, so nobody minds.
        (1, 0, {"CUDA_VISIBLE_DEVICES": "0"}, ""),
        (1, 1, {}, ""),
    ],
)
def test_what_slurm_granted_is_held_against_what_was_asked(nodes, gpus, environment, said):
    assert launch.not_granted(nodes, gpus, environment) == said


@pytest.mark.parametrize(
    ("batch", "micro", "processes", "expected"),
    [(128, 4, 1, (4, 32)), (128, 4, 8, (4, 4)), (128, 4, 16, (4, 2)), (128, 32, 16, (8, 1)), (32, 64, 2, (16, 1))],
)
def test_the_batch_over_all_processes_stays_what_config_says(batch, micro, processes, expected):
    assert training.divided(batch, micro, processes) == expected
    rows, passes = expected
    assert rows * passes * processes == batch


@pytest.mark.parametrize(("batch", "micro", "processes"), [(128, 4, 3), (12, 4, 2), (10, 4, 1)])
def test_what_does_not_divide_is_refused(batch, micro, processes):
    with pytest.raises(InputError, match="does not divide"):
        training.divided(batch, micro, processes)


def launched(processes, module, settings, inputs, output, runtime=None, **environment):
    """Run a stage as its rule does, through the launcher."""
    words = [
        sys.executable,
        "-m",
        "scripts.lib.stage.launch",
        "--processes",
        str(processes),
        "--threads",
        str(processes),
    ]
    words += [module.__name__, "--settings", json.dumps(settings)]
    words += ["--runtime", json.dumps({**RUNTIME, "train_micro_batch": 2, **(runtime or {})})]
    for name, paths in inputs.items():
        words += [f"--{name}", *map(str, paths if isinstance(paths, list) else [paths])]
    words += ["--output", str(output), "--results", str(output.parent)]
    return subprocess.run(
        words, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300, check=False
    )


LONG = [pytest.param(name, marks=pytest.mark.long) for name in ("sft", "packed", "reward")]


@pytest.mark.parametrize("name", ["dpo", *LONG])
def test_two_processes_train_one_model_with_the_losses_of_one_process(tmp_path, steps, name):
    module, settings, inputs = steps[name]
    made = {}
    for processes in (1, 2):
        output = tmp_path / str(processes) / "model"
        done = launched(processes, module, settings, inputs, output, **HOSTILE)  # all of it is ignored
        assert done.returncode == 0, done.stderr[-3000:]
        manifest = json.loads(output.with_suffix(".json").read_text())
        run = json.loads(output.with_name("model.run.json").read_text())
        assert run["processes"] == processes
        assert done.stdout.count(f"{module.__name__.split('.')[-1]} {output}: ") == 1  # one of them speaks
        made[processes] = (manifest, load_file(output / "model.safetensors"), done.stderr)
    (one, weights_one, log_one), (two, weights_two, log_two) = made[1], made[2]
    assert one["metrics"]["steps"] == two["metrics"]["steps"] == STEPS
    for key in ("first_loss", "last_loss"):
        assert two["metrics"][key] == pytest.approx(one["metrics"][key], abs=1e-5)
    assert two["counts"] == one["counts"]
    assert two["metrics"].keys() == one["metrics"].keys()
    for key, value in weights_one.items():
        torch.testing.assert_close(weights_two[key], value, atol=1e-4, rtol=1e-3)
    assert log_two.count("step 1/") == log_one.count("step 1/") == 1
    assert not (tmp_path / "2" / "work").exists()


def test_a_process_that_dies_takes_the_others_down_and_nothing_is_accepted(tmp_path, steps):
    module, settings, inputs = steps["sft"]
    killer = tmp_path / "killer"
    killer.mkdir()
    # Python runs this before the stage: the second process dies when it begins to train.
    (killer / "sitecustomize.py").write_text(
        "import os\n"
        "if os.environ.get('RANK') == '1':\n"
        "    from transformers import Trainer\n"
        "    Trainer.train = lambda *a, **k: os._exit(9)\n"
    )
    output = tmp_path / "model"
    done = launched(2, module, settings, inputs, output, PYTHONPATH=str(killer))
    assert done.returncode != 0
    assert "exitcode: 9" in done.stderr.replace(" ", "").replace("exitcode:9", "exitcode: 9")
    assert not output.exists()
    assert not output.with_suffix(".json").exists()
