"""Steps that are killed and started again: the same losses, the same weights, each response once."""

import types

import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from scripts import sample_rollouts, score_rollouts
from scripts.lib.models import forward, training
from scripts.lib.stage import checkpoints
from scripts.lib.stage.chunks import Chunks
from tests.unit.steps import STEPS
from tests.unit.test_sampling import SETTINGS as SAMPLING

OFTEN = {"checkpoint_minutes": 0}


def die_at(monkeypatch, step):
    """Die when an optimizer step has been taken and logged, before its checkpoint."""
    real = training.Progress.on_log

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.global_step == step:
            raise KeyboardInterrupt
        return real(self, args, state, control, logs=logs, **kwargs)

    monkeypatch.setattr(training.Progress, "on_log", on_log)


@pytest.mark.parametrize("name", ["sft", "reward", "dpo"])
def test_training_killed_twice_gives_the_losses_and_weights_of_one_that_was_not(
    tmp_path, run_stage, steps, monkeypatch, capsys, name
):
    module, settings, inputs = steps[name]
    code, whole = run_stage(module, settings, tmp_path / "whole" / "model", **inputs)
    assert code == 0
    assert whole["metrics"]["steps"] == STEPS
    output = tmp_path / "killed" / "model"
    for step in (3, 7):  # in the first epoch, and in the second
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            die_at(patch, step)
            run_stage(module, settings, output, OFTEN, **inputs)
        assert not output.with_suffix(".json").exists()
    capsys.readouterr()
    code, killed = run_stage(module, settings, output, OFTEN, **inputs)
    assert code == 0
    assert "continuing from" in (log := capsys.readouterr().err)
    assert "checkpoint-6" in log
    assert f"step 1/{STEPS}" not in log
    assert killed["metrics"] == pytest.approx(whole["metrics"], abs=1e-5)
    weights = load_file(output / "model.safetensors")
    for key, value in load_file(tmp_path / "whole" / "model" / "model.safetensors").items():
        torch.testing.assert_close(weights[key], value, rtol=0, atol=1e-5)
    assert not (tmp_path / "killed" / "work").exists()


def test_a_half_written_checkpoint_is_removed_and_the_one_before_it_taken(tmp_path, run_stage, steps, monkeypatch):
    module, settings, inputs = steps["sft"]
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        die_at(patch, 6)
        run_stage(module, settings, tmp_path / "model", OFTEN, **inputs)
    folder = tmp_path / "work" / "model" / "checkpoints"
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-5"]
    (folder / "checkpoint-5" / checkpoints.WHOLE).unlink()
    assert checkpoints.last_whole(folder, checkpoints.sharing("data")) == str(folder / "checkpoint-4")
    assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-4"]


@pytest.mark.parametrize(("strategy", "processes"), [("zero2", 1), ("data", 2)])
def test_a_checkpoint_of_another_sharing_is_thrown_away_with_a_line(
    tmp_path, run_stage, steps, monkeypatch, capsys, strategy, processes
):
    module, settings, inputs = steps["sft"]
    assert run_stage(module, settings, tmp_path / "whole" / "model", **inputs)[0] == 0
    output = tmp_path / "killed" / "model"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        other = {"strategy": strategy, "processes": processes}
        patch.setattr(checkpoints, "sharing", lambda _: other)
        die_at(patch, 6)
        run_stage(module, settings, output, OFTEN, **inputs)
    capsys.readouterr()
    assert run_stage(module, settings, output, OFTEN, **inputs)[0] == 0
    log = capsys.readouterr().err
    assert "checkpoint-5: saved under " in log
    assert f"strategy: {strategy}" in log and f"processes: {processes}" in log
    assert "this step runs under strategy: data, processes: 1; thrown away" in log
    assert "continuing from" not in log
    assert f"step 1/{STEPS}" in log
    one, two = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_what_sharing_says_are_the_processes_that_there_are(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert checkpoints.sharing("zero3") == {"strategy": "zero3", "processes": 4}


@pytest.mark.parametrize("first", [True, False])
def test_no_process_trains_on_before_the_first_has_a_checkpoint_on_disk(tmp_path, monkeypatch, first):
    folder, seen = tmp_path / "checkpoint-3", []
    folder.mkdir()
    monkeypatch.setattr(checkpoints.ranks, "first", lambda: first)
    monkeypatch.setattr(checkpoints.ranks, "wait", lambda: seen.append((folder / checkpoints.WHOLE).exists()))
    args, state = types.SimpleNamespace(output_dir=tmp_path), types.SimpleNamespace(global_step=3)
    checkpoints.Keeper(1, {"strategy": "zero2"}).on_save(args, state, None)
    assert seen == [False, first]


def test_no_checkpoint_is_saved_before_its_time(tmp_path, run_stage, steps, monkeypatch):
    module, settings, inputs = steps["sft"]
    saved = []
    monkeypatch.setattr(checkpoints.Keeper, "on_save", lambda self, args, state, control, **_: saved.append(state))
    assert run_stage(module, settings, tmp_path / "model", **inputs)[0] == 0
    assert saved == []


# Inference: finished chunks


class Dies:
    """Counts calls and dies in the n-th."""

    def __init__(self, real, after):
        self.real, self.after, self.calls = real, after, []

    def __call__(self, *args, **kwargs):
        if len(self.calls) == self.after:
            raise KeyboardInterrupt
        self.calls.append(args)
        return self.real(*args, **kwargs)


def test_sampling_goes_on_where_it_was_killed_and_draws_each_response_once(
    tmp_path, run_stage, policy, prompts, monkeypatch
):
    from scripts.lib.models.engines.transformers import TransformersEngine

    settings = SAMPLING | {"k": 6, "record_logprobs": True}
    inputs = {"policy": policy, "prompts": prompts}
    assert run_stage(sample_rollouts, settings, tmp_path / "whole.parquet", **inputs)[0] == 0
    real, drawn = TransformersEngine._batch, []
    for batches in (2, 1, None):
        dies = Dies(lambda engine, requests: drawn.extend(r.seed for r in requests) or real(engine, requests), batches)
        with monkeypatch.context() as patch:
            patch.setattr(TransformersEngine, "_batch", lambda *args, dies=dies: dies(*args))
            if batches is None:
                assert run_stage(sample_rollouts, settings, tmp_path / "killed.parquet", OFTEN, **inputs)[0] == 0
            else:
                with pytest.raises(KeyboardInterrupt):
                    run_stage(sample_rollouts, settings, tmp_path / "killed.parquet", OFTEN, **inputs)
    assert len(drawn) == len(set(drawn)) == 30
    assert (tmp_path / "killed.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert (tmp_path / "killed.json").read_bytes() == (tmp_path / "whole.json").read_bytes()


def test_scoring_goes_on_where_it_was_killed(tmp_path, run_stage, write, rollout, save_model, tokenizer, monkeypatch):
    from transformers import LlamaForSequenceClassification

    model = save_model(tmp_path / "rm" / "model", tokenizer, kind=LlamaForSequenceClassification)
    rows = [
        rollout("count", k, " ".join(["one", "two", "red"][: k % 3 + 1] * (k + 1)), tokenizer=tokenizer)
        for k in range(12)
    ]
    inputs = {"model": model, "rollouts": write(tmp_path / "rollouts.parquet", rows, "ROLLOUTS")}
    settings, small = {"dtype": "float32", "labeller": "bt"}, {"score_tokens": 96}
    assert run_stage(score_rollouts, settings, tmp_path / "whole.parquet", small, **inputs)[0] == 0
    real, scored = forward.rewards, []
    for batches in (1, 2, None):
        dies = Dies(lambda *args: scored.extend(map(tuple, args[2])) or real(*args), batches)
        with monkeypatch.context() as patch:
            patch.setattr(forward, "rewards", dies)
            if batches is None:
                assert run_stage(score_rollouts, settings, tmp_path / "killed.parquet", OFTEN | small, **inputs)[0] == 0
            else:
                with pytest.raises(KeyboardInterrupt):
                    run_stage(score_rollouts, settings, tmp_path / "killed.parquet", OFTEN | small, **inputs)
    assert len(scored) == len(set(scored)) == 12
    assert (tmp_path / "killed.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def test_a_chunk_that_cannot_be_read_is_made_again(tmp_path, capsys):
    first = Chunks(tmp_path, minutes=0)
    first.add({4: {"value": 1.5}})
    first.add({2: {"value": 0.1 + 0.2}, 7: {"value": -1.0}})
    assert (
        Chunks(tmp_path, minutes=0).rows
        == first.rows
        == {4: {"value": 1.5}, 2: {"value": 0.1 + 0.2}, 7: {"value": -1.0}}
    )
    last = tmp_path / "0000000003.parquet"
    last.write_bytes(last.read_bytes()[:-10])
    assert Chunks(tmp_path, minutes=0).rows == {4: {"value": 1.5}}
    assert not last.exists()
    assert "its rows are made again" in capsys.readouterr().err


def test_chunks_are_written_when_it_is_time(tmp_path):
    chunks = Chunks(tmp_path, minutes=10)
    chunks.add({0: {"value": 1.0}})
    assert list(tmp_path.iterdir()) == []
    chunks.seconds = 0
    chunks.add({1: {"value": 2.0}})
    (file,) = tmp_path.iterdir()
    assert pl.read_parquet(file).to_dicts() == [{"index": 0, "value": 1.0}, {"index": 1, "value": 2.0}]


def test_many_rows_without_a_value_before_one_that_has_it_are_kept(tmp_path):
    from scripts.lib.stage.chunks import Chunks

    rows = {i: {"token_ids": [i], "logprob": None if i < 150 else -1.5} for i in range(160)}
    kept = Chunks(tmp_path, 10)
    kept.add(rows)
    kept.flush()
    assert Chunks(tmp_path, 10).rows == rows
