"""A step's gradient is that of its whole batch, in whatever forward passes and processes it is computed."""

import json
import math
import types
from typing import get_args

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file

from scripts import train_dpo, train_raft
from scripts.lib.kinds.runs import WHOLE_BATCH, Loss, TrainDpo
from scripts.lib.models import accumulation, loading, reference, training
from scripts.lib.stage.contract import Job
from tests.unit.conftest import stage_runtime, typed
from tests.unit.steps import TRAINING
from tests.unit.test_launch import launched

# Sixteen rows, six a step: two steps of six and one of four, which is passes of 1 each, of 3 and 1, or of 4.
UNEVEN = {"epochs": 1, "batch_size": 6, "schedule": "constant"}
MICRO = (1, 3, 6)
SEPARABLE = [loss for loss in get_args(Loss) if loss not in WHOLE_BATCH]


@pytest.fixture
def gradients(monkeypatch):
    """The gradient of every step, before it is clipped."""
    seen, clip = [], torch.nn.utils.clip_grad_norm_

    def clip_grad_norm_(parameters, *args, **kwargs):
        parameters = list(parameters)
        seen.append(torch.cat([each.grad.flatten().clone() for each in parameters]))
        return clip(parameters, *args, **kwargs)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", clip_grad_norm_)
    return seen


@pytest.fixture
def raft(tmp_path, write, rollout, tokenizer, policy):
    """A RAFT step on sixteen responses of one to five words."""
    words = "one two three four five".split()
    questions = [f"say {first} {second}" for first in words[:4] for second in words[:4]]
    rows = [rollout(q, 0, " ".join(words[: 1 + i % 5]), tokenizer=tokenizer) for i, q in enumerate(questions)]
    rewards = [{"prompt_id": row["prompt_id"], "k": 0, "reward": 1.0, "objectives": ""} for row in rows]
    inputs = {
        "start": policy,
        "rollouts": write(tmp_path / "rollouts.parquet", rows, "ROLLOUTS"),
        "rewards": write(tmp_path / "rewards.parquet", rewards, "REWARDS"),
    }
    return train_raft, TRAINING, inputs


def steps_of(tmp_path, run_stage, gradients, module, settings, inputs):
    """micro-batch → (gradients of its steps, final weights, manifest)."""
    made = {}
    for micro in MICRO:
        gradients.clear()
        output = tmp_path / str(micro) / "model"
        code, manifest = run_stage(module, settings, output, {"train_micro_batch": micro}, **inputs)
        assert code == 0
        made[micro] = (list(gradients), load_file(output / "model.safetensors"), manifest)
    return made


def check_same(made, steps):
    whole, weights, manifest = made[MICRO[-1]]
    assert len(whole) == steps and all(each.abs().max() > 1e-3 for each in whole)
    for micro in MICRO[:-1]:
        for one, other in zip(made[micro][0], whole, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
        # Adam's second step divides by gradients of the size of rounding errors, so weights are held less closely.
        for name, value in weights.items():
            torch.testing.assert_close(made[micro][1][name], value, atol=1e-4, rtol=1e-3)
        assert made[micro][2]["metrics"] == pytest.approx(manifest["metrics"], abs=1e-4)


@pytest.fixture(scope="module")
def trainer(tmp_path_factory, policy, tokenizer, steps):
    """A DPO trainer with rows whose reference is off by some nats, so that no loss starts at a symmetric point."""
    from trl import DPOConfig

    _, settings, inputs = steps["dpo"]
    job = Job(
        "train_dpo",
        typed(TrainDpo, settings),
        stage_runtime(),
        {name: paths if isinstance(paths, list) else [paths] for name, paths in inputs.items()},
        tmp_path_factory.mktemp("accumulation") / "model",
        tmp_path_factory.mktemp("accumulation") / "work",
    )
    rows = list(train_dpo.token_rows(tokenizer, train_dpo.load_pairs(job)))
    for i, row in enumerate(rows):
        row["chosen_ids"] = row["chosen_ids"][:1] * (i % 4) + row["chosen_ids"]  # of different lengths
        row["ref_chosen_logps"] += 2 * math.sin(i)
        row["ref_rejected_logps"] += 3 * math.cos(i)
    given = {"max_length": None, "precompute_ref_log_probs": True, "label_smoothing": 0.1}
    arguments = training.arguments(DPOConfig, job, len(rows), **given)
    model = loading.load_policy(policy, "float32")
    data = Dataset.from_list(rows).remove_columns("longer_ids")
    return reference.ReferenceDPOTrainer(model=model, args=arguments, train_dataset=data, processing_class=tokenizer)


def gradient(trainer, micro, rows):
    """(loss, gradient) of one step on some rows, `micro` in a forward pass."""
    trainer.model.zero_grad()
    parts = [list(rows)[start : start + micro] for start in range(0, len(rows), micro)]
    batches = iter([trainer.data_collator([trainer.train_dataset[i] for i in part]) for part in parts])
    taken, totals = trainer.get_batch_samples(batches, len(parts), torch.device("cpu"))
    trainer.current_gradient_accumulation_steps = len(taken)
    loss = sum(trainer.training_step(trainer.model, dict(batch), totals).item() for batch in taken)
    return loss, torch.cat([each.grad.flatten().clone() for each in trainer.model.parameters()])


@pytest.mark.parametrize("losses", [[loss] for loss in SEPARABLE] + [["sigmoid", "sft"], ["sft", "apo_zero"]], ids=str)
@pytest.mark.parametrize("rows", [range(6), range(10, 14)], ids=["whole step", "remainder"])
def test_every_dpo_loss_has_the_gradient_of_the_whole_batch(trainer, monkeypatch, losses, rows):
    monkeypatch.setattr(trainer, "loss_types", losses)
    monkeypatch.setattr(trainer.args, "loss_weights", [1.0, 0.5] if len(losses) > 1 else None)
    loss, whole = gradient(trainer, len(rows), rows)
    assert whole.abs().max() > 1e-3
    for micro in (1, 3):
        value, parts = gradient(trainer, micro, rows)
        assert value == pytest.approx(loss, rel=1e-5)
        torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-4)
    # A mean over rows or tokens, and none of the parts: what one row alone gives is something else.
    assert (gradient(trainer, 1, rows[:1])[1] - whole).abs().max() > 1e-3


@pytest.mark.parametrize("loss", sorted(WHOLE_BATCH))
def test_the_losses_that_are_refused_in_parts_differ_in_parts(trainer, monkeypatch, loss):
    monkeypatch.setattr(trainer, "loss_types", [loss])
    whole, parts = (gradient(trainer, micro, range(6))[1] for micro in (6, 1))
    assert (parts - whole).abs().max() > 1e-3


def test_a_dpo_step_trains_alike_in_parts(tmp_path, run_stage, steps, gradients):
    module, settings, inputs = steps["dpo"]
    settings = settings | UNEVEN | {"loss": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]}
    check_same(steps_of(tmp_path, run_stage, gradients, module, settings, inputs), steps=3)


@pytest.mark.parametrize("name", ["sft", "reward", "raft"])
def test_every_trainer_has_the_gradient_of_the_whole_batch(tmp_path, run_stage, steps, raft, gradients, name):
    module, settings, inputs = raft if name == "raft" else steps[name]
    check_same(steps_of(tmp_path, run_stage, gradients, module, settings | UNEVEN, inputs), steps=3)


def test_packed_blocks_have_the_gradient_of_the_whole_batch(tmp_path, run_stage, steps, gradients):
    module, settings, inputs = steps["packed"]
    made = steps_of(tmp_path, run_stage, gradients, module, settings | UNEVEN | {"max_length": 24}, inputs)
    blocks = made[6][2]["counts"]["blocks_trained"]
    assert blocks % 6 and blocks > 6
    check_same(made, steps=-(-blocks // 6))


@pytest.mark.parametrize("loss", sorted(WHOLE_BATCH))
def test_a_loss_that_sorts_the_batch_is_refused_in_parts(tmp_path, run_stage, steps, capsys, loss):
    module, settings, inputs = steps["dpo"]
    settings = settings | {"loss": ["sigmoid", loss], "loss_weights": None, "epochs": 0.25}
    assert run_stage(module, settings, tmp_path / "a" / "model", {"train_micro_batch": 2}, **inputs)[0] == 2
    said = capsys.readouterr().out
    assert f"loss {loss} sorts all 4 rows of a batch, and a forward pass of one of 1 processes holds 2.\nHint: " in said
    assert run_stage(module, settings, tmp_path / "b" / "model", {"train_micro_batch": 4}, **inputs)[0] == 0


# Several processes


@pytest.mark.parametrize(("rows", "micro", "processes"), [(1000, 4, 8), (257, 4, 8), (16, 2, 2), (18, 4, 2), (7, 1, 4)])
def test_every_row_of_an_epoch_counts_once_where_accelerate_repeats_some(rows, micro, processes):
    from accelerate.data_loader import BatchSamplerShard
    from torch.utils.data import BatchSampler, SequentialSampler

    counted = []
    for process in range(processes):
        batches = BatchSampler(SequentialSampler(range(rows)), micro, drop_last=False)
        *whole, last = BatchSamplerShard(batches, processes, process)
        trainer = accumulation.Unrepeated.__new__(accumulation.Unrepeated)
        trainer.args, trainer.train_dataset = types.SimpleNamespace(per_device_train_batch_size=micro), range(rows)
        state = types.SimpleNamespace(end_of_dataloader=False)
        trainer.accelerator = types.SimpleNamespace(
            num_processes=processes, process_index=process, gradient_state=state
        )
        assert trainer.new_rows() is None
        state.end_of_dataloader = True
        new, _ = trainer.new_rows() or (len(last), None)
        counted += [row for batch in whole for row in batch] + last[:new]
    assert sorted(counted) == list(range(rows))


LONG = [pytest.param(name, marks=pytest.mark.long) for name in ("sft", "packed", "reward")]


@pytest.mark.parametrize("name", ["dpo", *LONG])
def test_two_processes_train_as_one_where_the_rows_do_not_divide(tmp_path, steps, run_stage, name):
    module, settings, inputs = steps[name]
    # Of each epoch's rows the last step has four, or an odd number of blocks: the second process gets repeats.
    settings = settings | {"batch_size": 6, "epochs": 2, "schedule": "constant"}
    if name == "dpo":
        settings = settings | {"loss": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]}
    runtime = {"train_micro_batch": 3}
    output = tmp_path / "two" / "model"
    done = launched(2, module, settings, inputs, output, runtime)
    assert done.returncode == 0, done.stderr[-3000:]
    code, one = run_stage(module, settings, tmp_path / "one" / "model", runtime, **inputs)
    two = json.loads(output.with_suffix(".json").read_text())
    assert code == 0
    for key in ("steps", "first_loss", "last_loss"):
        assert two["metrics"][key] == pytest.approx(one["metrics"][key], abs=1e-5), key
    assert two["metrics"].keys() == one["metrics"].keys()
    weights = load_file(output / "model.safetensors")
    for key, value in load_file(tmp_path / "one" / "model" / "model.safetensors").items():
        torch.testing.assert_close(weights[key], value, atol=1e-4, rtol=1e-3)
