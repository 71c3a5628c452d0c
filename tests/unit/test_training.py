"""What all training steps share: attention kernels, trackers, activation checkpoints, speed and the time left."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
import types

import pytest
import torch
from trl import SFTConfig
from trl.trainer.base_trainer import _BaseTrainer

from scripts import score_logprobs
from scripts.lib.kinds.common import Typed
from scripts.lib.kinds.trainer import Finetuned
from scripts.lib.models import loading, training
from scripts.lib.stage import trackers
from scripts.lib.stage.contract import Job
from scripts.lib.stage.digest import ROOT
from scripts.lib.stage.errors import InputError
from tests.unit.conftest import RUNTIME, stage_runtime, typed
from tests.unit.steps import STEPS, TRAINING
from tests.unit.test_resume import OFTEN, die_at

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def a_job(tmp_path, settings=None, **runtime):
    return Job(
        "stage",
        settings or Typed(dtype="float32"),
        stage_runtime(**runtime),
        {},
        tmp_path / "model",
        tmp_path / "work",
        tmp_path / "logs" / "tensorboard" / "model",
        tmp_path / "logs",
    )


@pytest.fixture
def flash(monkeypatch):
    """Pretend that flash-attn is installed, or that it is not: flash(True)."""
    real = importlib.util.find_spec

    def there(installed):
        spec = types.SimpleNamespace() if installed else None
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, *a: spec if name == "flash_attn" else real(name, *a)
        )

    return there


# Attention


@pytest.mark.parametrize(
    ("asked", "installed", "dtype", "device", "chosen"),
    [
        ("auto", True, "bfloat16", CUDA, "flash_attention_2"),
        ("auto", False, "bfloat16", CUDA, "sdpa"),
        ("auto", True, "float32", CUDA, "sdpa"),
        ("auto", True, "bfloat16", CPU, "sdpa"),
        ("eager", True, "bfloat16", CUDA, "eager"),
        ("sdpa", True, "bfloat16", CUDA, "sdpa"),
        ("flash_attention_2", True, "bfloat16", CUDA, "flash_attention_2"),
    ],
)
def test_the_kernel_is_chosen_by_what_is_installed(tmp_path, flash, asked, installed, dtype, device, chosen):
    flash(installed)
    job = a_job(tmp_path, Typed(dtype=dtype), attention=asked)
    assert loading.attention(job, device) == chosen
    assert job.facts == {"attention": chosen}


@pytest.mark.parametrize(
    ("installed", "dtype", "device", "missing"),
    [
        (False, "bfloat16", CUDA, "the package flash-attn"),
        (True, "float32", CUDA, "dtype: bfloat16"),
        (True, "bfloat16", CPU, "a GPU"),
    ],
)
def test_a_kernel_asked_for_by_name_that_cannot_be_had_is_refused(tmp_path, flash, installed, dtype, device, missing):
    flash(installed)
    with pytest.raises(InputError, match=f"flash_attention_2, which needs {missing}.\nHint: "):
        loading.attention(a_job(tmp_path, Typed(dtype=dtype), attention="flash_attention_2"), device)


def test_the_kernel_asked_for_is_the_models_in_training_and_scoring(
    tmp_path, run_stage, steps, policy, write, rollout, tokenizer, monkeypatch
):
    used, load = [], loading.load_policy

    def load_policy(*args, **how):
        model = load(*args, **how)
        used.append(model.config._attn_implementation)
        return model

    monkeypatch.setattr(loading, "load_policy", load_policy)
    module, settings, inputs = steps["sft"]
    assert run_stage(module, settings, tmp_path / "model", {"attention": "eager"}, **inputs)[0] == 0
    rows = write(tmp_path / "rollouts.parquet", [rollout("count", 0, "one", tokenizer=tokenizer)], "ROLLOUTS")
    settings, output = {"dtype": "float32"}, tmp_path / "logprobs.parquet"
    assert run_stage(score_logprobs, settings, output, {"attention": "eager"}, scorer=policy, rollouts=rows)[0] == 0
    assert used == ["eager", "eager"]
    for name in ("model", "logprobs"):
        assert json.loads((tmp_path / f"{name}.run.json").read_text())["attention"] == "eager"


# A step that goes wrong


def poisoned(monkeypatch, at):
    """Have the loss of the forward pass `at`, counted from 1, be no number; gives the list of all passes."""
    calls, real = [], _BaseTrainer.training_step

    def training_step(*args, **kwargs):
        calls.append(1)
        loss = real(*args, **kwargs)
        return loss * float("nan") if len(calls) == at else loss

    monkeypatch.setattr(_BaseTrainer, "training_step", training_step)
    return calls


@pytest.mark.parametrize("name", ["sft", "reward", "dpo"])
def test_a_loss_that_is_no_number_ends_the_step_where_it_happens(tmp_path, run_stage, steps, monkeypatch, capsys, name):
    module, settings, inputs = steps[name]
    calls = poisoned(monkeypatch, 3)
    assert run_stage(module, settings, tmp_path / "model", **inputs)[0] == 2
    assert "training diverged: loss is nan at step 3 of 8.\nHint: lower the learning rate" in capsys.readouterr().out
    assert len(calls) == 3
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("at", [41, 42])
def test_a_loss_that_is_no_number_leaves_neither_a_policy_nor_a_checkpoint(
    tmp_path, run_stage, steps, monkeypatch, capsys, at
):
    module, settings, inputs = steps["sft"]
    settings = settings | {"epochs": 10.75, "batch_size": 4}  # 43 steps, of which every second is logged, and the last
    poisoned(monkeypatch, at)
    assert run_stage(module, settings, tmp_path / "model", OFTEN, **inputs)[0] == 2
    assert "training diverged: loss is nan at step 42 of 43." in capsys.readouterr().out
    saved = {path.name for path in (tmp_path / "work" / "model" / "checkpoints").glob("checkpoint-*")}
    assert saved == {"checkpoint-38", "checkpoint-40"}


def test_a_loss_that_is_no_number_in_the_last_step_is_seen(tmp_path, run_stage, steps, monkeypatch, capsys):
    module, settings, inputs = steps["sft"]
    settings = settings | {"epochs": 10.75, "batch_size": 4}
    poisoned(monkeypatch, 43)
    assert run_stage(module, settings, tmp_path / "model", **inputs)[0] == 2
    assert "training diverged: loss is nan at step 43 of 43." in capsys.readouterr().out


def test_a_gradient_that_is_no_number_ends_the_step(tmp_path, run_stage, steps, monkeypatch, capsys):
    module, settings, inputs = steps["sft"]
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *args, **kwargs: torch.tensor(float("inf")))
    assert run_stage(module, settings, tmp_path / "model", **inputs)[0] == 2
    assert "training diverged: grad_norm is inf at step 1 of 8." in capsys.readouterr().out


def test_long_runs_write_a_line_every_ten_steps_and_short_ones_twenty(tmp_path):
    def every(rows):
        job = a_job(tmp_path, typed(Finetuned, TRAINING | {"epochs": 1}))
        return training.arguments(SFTConfig, job, rows).logging_steps

    assert [every(4 * steps) for steps in (8, 60, 200, 72_500)] == [1, 3, 10, 10]


def test_a_gpu_that_is_asked_for_and_not_there_stops_the_step(tmp_path, run_stage, steps, monkeypatch, capsys):
    module, settings, inputs = steps["sft"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run_stage(module, settings, tmp_path / "model", {"device": "cuda"}, **inputs)[0] == 2
    error = capsys.readouterr().out
    assert f"runtime.device is cuda, but PyTorch {torch.__version__}, built with" in error
    assert "Hint: an environment made on a machine without a GPU has no CUDA" in error


# Trackers


def curves(folder):
    """(step, loss) of every event file of a folder, each file apart, in the order in which they were begun."""
    from tensorboardX.proto import event_pb2

    found = []
    for file in sorted(folder.iterdir()):
        points, data = [], file.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")  # a record: length, its checksum, the event, its checksum
            event = event_pb2.Event.FromString(data[12 : 12 + length])
            points += [(event.step, value.simple_value) for value in event.summary.value if value.tag == "train/loss"]
            data = data[16 + length :]
        found.append(points)
    return found


def test_curves_lie_beneath_the_results_and_go_on_where_a_step_was_killed(tmp_path, run_stage, steps, monkeypatch):
    module, settings, inputs = steps["dpo"]
    output, runtime = tmp_path / "model", {**OFTEN, "trackers": ["tensorboard"]}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        die_at(patch, 5)
        run_stage(module, settings, output, runtime, **inputs)
    time.sleep(1.1)  # event files are named by the second
    code, manifest = run_stage(module, settings, output, runtime, **inputs)
    assert code == 0
    folder = tmp_path / "logs" / "tensorboard" / "model"
    first, second = curves(folder)
    assert [step for step, _ in second] == [5, 6, 7, 8]
    assert [step for step, _ in first][:4] == [1, 2, 3, 4]
    assert second[-1][1] == pytest.approx(manifest["metrics"]["last_loss"], abs=1e-5)
    # Made again from the beginning, it has one curve and not two on top of each other.
    assert run_stage(module, settings | {"seed": 9}, output, runtime, **inputs)[0] == 0
    (only,) = curves(folder)
    assert [step for step, _ in only] == list(range(1, STEPS + 1))


def test_without_trackers_nothing_is_written_and_nothing_imported(tmp_path, steps):
    _, settings, inputs = steps["sft"]
    packages = [package for packages in trackers.PACKAGES.values() for package in packages]
    words = ["--settings", json.dumps(settings), "--runtime", json.dumps(RUNTIME | {"trackers": []})]
    for name, path in inputs.items():
        words += [f"--{name}", str(path)]
    code = f"""
import sys
from scripts import train_sft
print(train_sft.main({[*words, "--output", str(tmp_path / "model")]}))
print([name for name in {packages} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-2:] == ["0", "[]"], done.stderr[-3000:]
    assert not (tmp_path / "logs").exists()


PLACES = {
    "tensorboard": {"TENSORBOARD_LOGGING_DIR": "{logs}/tensorboard/model"},
    "wandb": {"WANDB_DIR": "{logs}/wandb", "WANDB_PROJECT": "ouroboros"},
    "mlflow": {"MLFLOW_TRACKING_URI": "sqlite:///{logs}/mlflow/mlflow.db", "MLFLOW_EXPERIMENT_NAME": "ouroboros"},
    "trackio": {"TRACKIO_DIR": "{logs}/trackio"},
}


@pytest.fixture
def installed(monkeypatch):
    """Pretend that every tracker is installed, in an environment that says nothing of them."""
    real, there = importlib.util.find_spec, {name for packages in trackers.PACKAGES.values() for name in packages}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: True if name in there else real(name, *a))
    for variable in {variable for own in PLACES.values() for variable in own}:
        monkeypatch.setenv(variable, "")  # so that monkeypatch puts back what was there
        monkeypatch.delenv(variable)


@pytest.mark.parametrize("name", sorted(PLACES))
def test_a_tracker_writes_beneath_the_results_into_a_folder_that_is_there(tmp_path, installed, name):
    job = a_job(tmp_path, trackers=[name])
    assert trackers.report_to(job) == [name]
    assert {key: os.environ[key] for key in PLACES[name]} == {
        key: value.format(logs=job.logs) for key, value in PLACES[name].items()
    }
    assert (job.logs / name).is_dir()
    assert not [key for other in PLACES.keys() - {name, "tensorboard"} for key in PLACES[other] if key in os.environ]


def test_what_the_environment_says_of_a_tracker_comes_first(tmp_path, installed, monkeypatch):
    said = {"WANDB_PROJECT": "mine", "MLFLOW_TRACKING_URI": "https://mlflow.example"}
    for variable, value in said.items():
        monkeypatch.setenv(variable, value)
    trackers.report_to(a_job(tmp_path, trackers=["wandb", "mlflow"]))
    assert {variable: os.environ[variable] for variable in said} == said
    assert os.environ["MLFLOW_EXPERIMENT_NAME"] == "ouroboros"


@pytest.mark.parametrize("name", sorted(trackers.PACKAGES))
def test_a_tracker_whose_package_is_missing_is_refused_before_training(tmp_path, run_stage, steps, monkeypatch, name):
    for package in trackers.PACKAGES[name]:
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf"runtime.trackers names '{name}', but {trackers.PACKAGES[name][0]} is not"):
        trackers.report_to(a_job(tmp_path, trackers=[name]))


def test_only_the_first_process_reports(tmp_path, monkeypatch):
    job = a_job(tmp_path, trackers=["tensorboard"])
    assert trackers.report_to(job) == ["tensorboard"]
    shutil.rmtree(job.logs)
    monkeypatch.setenv("RANK", "1")
    assert trackers.report_to(job) == [] and not job.logs.exists()


def test_training_writes_no_key_of_a_service_that_the_environment_holds(tmp_path, run_stage, steps, monkeypatch, capfd):
    secret = "-".join(["key", "that", "nobody", "may", "see"])
    for name in ("WANDB_API_KEY", "HF_TOKEN", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, secret)
    module, settings, inputs = steps["sft"]
    assert run_stage(module, settings, tmp_path / "model", {"trackers": ["tensorboard"]}, **inputs)[0] == 0
    shown = capfd.readouterr()
    assert secret not in shown.out + shown.err
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files and not [path for path in files if secret.encode() in path.read_bytes()]


HEAVY = ("peft", "deepspeed", "bitsandbytes", "tensorboardX", "trl")


def test_stages_that_do_not_train_import_nothing_of_what_training_needs():
    code = f"""
import sys
from scripts import build_pairs, sample_rollouts, score_logprobs, score_reference, score_rollouts
from scripts.lib.labels import bt
from scripts.lib.models import chat, loading, scoring
from scripts.lib.models.engines import transformers
print([name for name in {HEAVY} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Activation checkpoints


def test_checkpointed_activations_are_not_saved_and_change_no_loss(tmp_path, run_stage, steps, monkeypatch):
    module, settings, inputs = steps["dpo"]
    saved, real = {}, training.train

    def train(trainer, job, *args):
        own, step = [], trainer.training_step

        def counted(*given, **named):
            # What autograd keeps of the forward pass outside a checkpointed layer.
            with torch.autograd.graph.saved_tensors_hooks(lambda t: own.append(t.numel()) or t, lambda t: t):
                return step(*given, **named)

        trainer.training_step = counted
        saved[job.runtime.gradient_checkpointing] = own
        return real(trainer, job, *args)

    monkeypatch.setattr(training, "train", train)
    losses = {}
    for on in (False, True):
        runtime = {"gradient_checkpointing": on}
        code, manifest = run_stage(module, settings, tmp_path / str(on) / "model", runtime, **inputs)
        assert code == 0
        losses[on] = manifest["metrics"]
    assert losses[True] == pytest.approx(losses[False], abs=1e-6)
    assert sum(saved[True]) < 0.8 * sum(saved[False])


# Speed


def test_tokens_are_those_of_the_rows_trained_on_without_padding(tmp_path, run_stage, steps, capsys):
    from scripts.lib.data import tables
    from scripts.lib.data.schemas.pairs import PAIRS

    module, settings, inputs = steps["dpo"]
    runtime = {"train_micro_batch": 2}
    assert run_stage(module, settings, tmp_path / "model", runtime, **inputs)[0] == 0
    rows = tables.read_table(inputs["pairs"][0], PAIRS).to_dicts()
    sides = ("chosen_ids", "rejected_ids")
    epoch = sum(len(row["prompt_ids"]) + len(row[side]) for row in rows for side in sides)
    run = json.loads((tmp_path / "model.run.json").read_text())
    assert run["tokens"] == settings["epochs"] * epoch
    assert run["tokens_per_second"] > 0
    manifest = (tmp_path / "model.json").read_text()
    assert "tokens" not in manifest
    lines = [line for line in capsys.readouterr().err.split("\n") if line.startswith("step ")]
    assert len(lines) >= STEPS
    assert all(re.search(r"  [\d,]+ tokens/s  \d+:\d\d:\d\d left$", line) for line in lines)
    assert lines[-1].endswith("0:00:00 left")


def test_tokens_of_a_killed_step_count_once(tmp_path, run_stage, steps, monkeypatch):
    module, settings, inputs = steps["sft"]
    assert run_stage(module, settings, tmp_path / "whole" / "model", **inputs)[0] == 0
    output = tmp_path / "killed" / "model"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        die_at(patch, 6)
        run_stage(module, settings, output, OFTEN, **inputs)
    assert run_stage(module, settings, output, OFTEN, **inputs)[0] == 0
    whole, killed = (json.loads((tmp_path / name / "model.run.json").read_text()) for name in ("whole", "killed"))
    assert killed["tokens"] == whole["tokens"] > 0


def test_the_pace_is_that_since_the_start_or_the_checkpoint(monkeypatch):
    clock = iter([100.0, 110.0])
    monkeypatch.setattr(training.time, "monotonic", lambda: next(clock))
    watch = training.Progress.__new__(training.Progress)
    state = types.SimpleNamespace(global_step=4, max_steps=20, num_input_tokens_seen=4000)
    watch.on_train_begin(None, state, None)
    state.global_step, state.num_input_tokens_seen = 8, 9000
    speed, left = watch.pace(state)
    assert speed == 500  # 5000 tokens in 10 seconds
    assert left.total_seconds() == 30  # 12 steps at 2.5 seconds


def test_scoring_says_its_speed(tmp_path, run_stage, policy, write, rollout, tokenizer, capsys):
    rows = [rollout("count", k, "one two three", tokenizer=tokenizer) for k in range(3)]
    inputs = {"scorer": policy, "rollouts": write(tmp_path / "rollouts.parquet", rows, "ROLLOUTS")}
    assert run_stage(score_logprobs, {"dtype": "float32"}, tmp_path / "l.parquet", **inputs)[0] == 0
    assert re.search(r"3/3 sequences scored  [\d,.]+ sequences/s  [\d,]+ tokens/s\n", capsys.readouterr().err)
    run = json.loads((tmp_path / "l.run.json").read_text())
    assert run["tokens"] == sum(len(row["prompt_ids"]) + len(row["token_ids"]) for row in rows)
    assert run["tokens_per_second"] > 0
