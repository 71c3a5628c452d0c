"""LoRA and QLoRA: only what was asked for is trained, and what is saved are whole weights with the adapters in them."""

import importlib.util
import json
import math
import os
import subprocess
import sys
import types

import pytest
import torch
from safetensors.torch import load_file

from scripts import score_reference, train_dpo, train_raft
from scripts.lib.kinds.trainer import Finetuned, Lora
from scripts.lib.models import loading, lora, training
from scripts.lib.stage import artifact
from scripts.lib.stage.digest import ROOT
from scripts.lib.stage.errors import InputError
from tests.unit.conftest import RUNTIME, stage_runtime, typed
from tests.unit.steps import STEPS, TRAINING
from tests.unit.test_resume import OFTEN, die_at

LORA = {"r": 4, "alpha": 8, "dropout": 0, "targets": ["all-linear"], "quantization": None}
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None,
    reason="bitsandbytes is not installed: pip install -r envs/requirements-qlora.txt",
)


@pytest.fixture
def trained(monkeypatch):
    """(trainer, whole model) of the steps that are made."""
    made, real = [], training.gather_full_model

    def gather_full_model(trainer, load):
        made.append((trainer, real(trainer, load)))
        return made[-1][1]

    monkeypatch.setattr(training, "gather_full_model", gather_full_model)
    return made


def changed(before, after, least=1e-5):
    """Names of the tensors that differ between two folders of weights."""
    one, two = (load_file(folder / "model.safetensors") for folder in (before, after))
    return {name for name, value in one.items() if (value - two[name]).abs().max() > least}


@pytest.mark.parametrize("targets", [["all-linear"], ["q_proj", "down_proj"]])
@pytest.mark.parametrize("name", ["sft", "dpo"])
def test_only_the_targets_change_and_whole_weights_are_saved(tmp_path, run_stage, steps, policy, name, targets):
    module, settings, inputs = steps[name]
    output = tmp_path / "model"
    code, _ = run_stage(module, settings | {"lora": LORA | {"targets": targets}}, output, **inputs)
    assert code == 0
    assert {path.name for path in output.iterdir()} == {path.name for path in policy.iterdir()}
    found = {name.split(".")[-2] for name in changed(policy, output)}
    assert found == set(LINEAR if targets == ["all-linear"] else targets)
    artifact.verify_model(output)


@pytest.mark.parametrize("name", ["sft", "dpo", "reward"])
def test_the_saved_weights_compute_what_the_adapters_did(tmp_path, run_stage, steps, trained, name):
    module, settings, inputs = steps[name]
    code, _ = run_stage(module, settings | {"lora": LORA, "learning_rate": 1e-2}, tmp_path / "model", **inputs)
    assert code == 0
    ((trainer, _),) = trained
    load = loading.load_reward if name == "reward" else loading.load_policy
    saved = load(tmp_path / "model", "float32").eval()
    ids = torch.tensor([[5, 9, 11, 20, 7], [30, 31, 8, 6, 4]])
    with torch.no_grad():
        wanted, found = (model(input_ids=ids).logits for model in (trainer.model.eval(), saved))
        with trainer.model.disable_adapter():
            off = trainer.model(input_ids=ids).logits
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    assert (off - wanted).abs().max() > 1e-2  # the adapters have learnt something


def test_the_optimizer_holds_states_of_the_adapters_only(tmp_path, run_stage, steps, trained):
    module, settings, inputs = steps["dpo"]
    assert run_stage(module, settings | {"lora": LORA}, tmp_path / "model", **inputs)[0] == 0
    ((trainer, _),) = trained
    held = {id(p) for group in trainer.optimizer.optimizer.param_groups for p in group["params"]}
    names = {name for name, p in trainer.model.named_parameters() if id(p) in held}
    assert names and all("lora_" in name for name in names)
    assert len(held) == 2 * len(LINEAR)


@pytest.mark.parametrize(
    ("lora", "sharding", "dtype"),
    [(None, "data", "float32"), (LORA, "data", "bfloat16"), (None, "zero3", "bfloat16")],
)
def test_weights_that_are_frozen_or_kept_by_deepspeed_are_held_in_16_bits(lora, sharding, dtype):
    settings = typed(Finetuned, TRAINING | {"lora": lora, "dtype": "bfloat16"})
    job = types.SimpleNamespace(settings=settings, runtime=stage_runtime(sharding=sharding))
    assert training.held_in(job) == dtype


def test_frozen_weights_in_bfloat16_stay_what_they_were(tmp_path, run_stage, steps, trained, policy):
    module, settings, inputs = steps["dpo"]
    given = settings | {"lora": LORA, "dtype": "bfloat16"}
    code, manifest = run_stage(module, given, tmp_path / "model", **inputs)
    assert code == 0
    ((trainer, _),) = trained
    kinds = {("lora_" in name): p.dtype for name, p in trainer.model.named_parameters()}
    assert kinds == {True: torch.float32, False: torch.bfloat16}
    saved = load_file(tmp_path / "model" / "model.safetensors")
    assert {value.dtype for value in saved.values()} == {torch.bfloat16}
    before = load_file(policy / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(saved["model.embed_tokens.weight"], before.bfloat16())
    assert manifest["metrics"]["first_loss"] == pytest.approx(math.log(2), abs=0.02)


def test_a_reward_model_trains_its_head_whole(tmp_path, run_stage, steps, policy):
    module, settings, inputs = steps["reward"]
    made = {}
    for rate in (1e-2, 1e-9):
        output = tmp_path / str(rate) / "model"
        given = settings | {"lora": LORA | {"targets": ["q_proj"]}, "learning_rate": rate}
        code, manifest = run_stage(module, given, output, **inputs)
        assert code == 0
        made[rate] = output, manifest
    found = {name.removesuffix(".weight").split(".")[-1] for name in changed(made[1e-9][0], made[1e-2][0])}
    assert found == {"q_proj", "score"}
    assert made[1e-2][1]["metrics"]["heldout_accuracy"] >= made[1e-9][1]["metrics"]["heldout_accuracy"]


def test_all_that_a_bfloat16_reward_model_trains_is_float32(tmp_path, run_stage, steps, trained):
    module, settings, inputs = steps["reward"]
    code, _ = run_stage(module, settings | {"lora": LORA, "dtype": "bfloat16"}, tmp_path / "model", **inputs)
    assert code == 0
    ((trainer, _),) = trained
    kinds = {name: p.dtype for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert any("score" in name for name in kinds) and any("lora_" in name for name in kinds)
    assert set(kinds.values()) == {torch.float32}
    assert {p.dtype for p in trainer.model.parameters() if not p.requires_grad} == {torch.bfloat16}


def test_dpo_with_adapters_starts_at_ln_2_and_learns(tmp_path, run_stage, steps):
    module, settings, inputs = steps["dpo"]
    given = settings | {"lora": LORA, "learning_rate": 1e-2, "epochs": 4}
    code, manifest = run_stage(module, given, tmp_path / "model", **inputs)
    assert code == 0
    assert manifest["metrics"]["first_loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert manifest["metrics"]["last_loss"] < 0.6


def test_the_gate_stops_adapters_on_another_start(tmp_path, run_stage, steps, other_policy, capsys):
    module, settings, inputs = steps["dpo"]
    code, _ = run_stage(module, settings | {"lora": LORA}, tmp_path / "model", **inputs | {"start": other_policy})
    assert code == 2
    assert "gate: before the first step" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["dpo", "reward"])
def test_a_killed_step_with_adapters_goes_on(tmp_path, run_stage, steps, monkeypatch, capsys, name):
    module, settings, inputs = steps[name]
    settings = settings | {"lora": LORA}
    assert run_stage(module, settings, tmp_path / "whole" / "model", **inputs)[0] == 0
    output = tmp_path / "killed" / "model"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        die_at(patch, 5)
        run_stage(module, settings, output, OFTEN, **inputs)
    capsys.readouterr()
    assert run_stage(module, settings, output, OFTEN, **inputs)[0] == 0
    assert "checkpoint-4" in (log := capsys.readouterr().err) and f"step 1/{STEPS}" not in log
    assert not changed(tmp_path / "whole" / "model", output)


def test_checkpointed_activations_give_adapters_the_same_gradients(tmp_path, run_stage, steps):
    module, settings, inputs = steps["dpo"]
    folders = []
    for on in (False, True):
        folders.append(tmp_path / str(on) / "model")
        runtime = {"gradient_checkpointing": on}
        assert run_stage(module, settings | {"lora": LORA}, folders[-1], runtime, **inputs)[0] == 0
    assert not changed(*folders, least=1e-6)


@pytest.mark.parametrize("name", ["sft", "dpo", "reward"])
def test_dropout_is_the_adapters_where_it_is_asked_for(tmp_path, run_stage, steps, trained, name):
    module, settings, inputs = steps[name]
    for dropout in (0, 0.25):
        given = settings | {"lora": LORA | {"dropout": dropout}}
        assert run_stage(module, given, tmp_path / str(dropout), **inputs)[0] == 0
        trainer, _ = trained.pop()
        found = {part.p for part in trainer.model.modules() if isinstance(part, torch.nn.Dropout)}
        assert found == ({0.25} if dropout else set())


@pytest.mark.parametrize("targets", [["lm_head"], ["q_proj", "query"]])
def test_targets_that_the_model_does_not_have_are_named(policy, targets):
    with pytest.raises(
        InputError, match=rf"lora.targets names \['{targets[-1]}'\]; the model's linear layers are down"
    ):
        lora.config(typed(Lora, LORA | {"targets": targets}), loading.load_policy(policy, "float32"), "CAUSAL_LM")


def test_raft_with_adapters_trains_the_targets_only(tmp_path, run_stage, write, rollout, policy, tokenizer):
    from tests.unit.test_train_raft import SETTINGS

    rows = [rollout(question, 0, "red blue", tokenizer=tokenizer) for question in ("count", "say yes", "say no")]
    table = write(tmp_path / "rollouts.parquet", rows, "ROLLOUTS")
    rewards = [{"prompt_id": row["prompt_id"], "k": 0, "reward": 1.0, "objectives": ""} for row in rows]
    given = SETTINGS | {"lora": LORA | {"targets": ["v_proj"]}}
    inputs = {"start": policy, "rollouts": [table], "rewards": [write(tmp_path / "r.parquet", rewards, "REWARDS")]}
    assert run_stage(train_raft, given, tmp_path / "model", **inputs)[0] == 0
    assert {name.split(".")[-2] for name in changed(policy, tmp_path / "model")} == {"v_proj"}


# Four bits. In processes of their own: bitsandbytes stays out of the rest, as it does in a build.


@pytest.fixture(scope="module")
def wide(tmp_path_factory, tokenizer, save_model):
    """A policy whose matrices are large enough for blocks of 64 numbers."""
    folder = tmp_path_factory.mktemp("wide") / "policy"
    return save_model(folder, tokenizer, hidden_size=64, intermediate_size=128, num_hidden_layers=2)


def staged(module, settings, output, runtime=None, **inputs):
    words = [sys.executable, "-m", module.__name__, "--settings", json.dumps(settings)]
    words += ["--runtime", json.dumps(RUNTIME | (runtime or {}))]
    for name, paths in inputs.items():
        words += [f"--{name}", *map(str, paths if isinstance(paths, list) else [paths])]
    words += ["--output", str(output)]
    done = subprocess.run(words, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=200, check=False)
    manifest = output.with_suffix(".json")
    return done, json.loads(manifest.read_text()) if done.returncode == 0 else {}


def test_a_missing_bitsandbytes_is_named_with_a_hint(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(
        InputError, match=r"bitsandbytes is not installed.\nHint: pip install -r envs/requirements-qlora"
    ):
        loading.four_bits("float32")


@needs_bitsandbytes
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dpo_on_four_bits_starts_at_its_reference_learns_and_saves_the_original_weights(tmp_path, steps, wide, dtype):
    _, settings, inputs = steps["dpo"]
    reference = tmp_path / "reference.parquet"
    nf4 = {"dtype": dtype, "quantization": "nf4"}
    done, whole = staged(score_reference, {**nf4, "quantization": None}, reference, scorer=wide, pairs=inputs["pairs"])
    assert done.returncode == 0, done.stderr[-3000:]
    lora = LORA | {"quantization": "nf4"}
    given = settings | {"lora": lora, "dtype": dtype, "learning_rate": 1e-2, "epochs": 4}
    inputs = {"start": wide, "pairs": inputs["pairs"], "reference": [reference]}
    # The quantised policy is another function than the whole one: its reference must be scored in four bits.
    done, _ = staged(train_dpo, given, tmp_path / "refused" / "policy", **inputs)
    assert done.returncode == 2 and "gate: before the first step" in done.stdout, done.stderr[-3000:]
    done, four = staged(score_reference, nf4, reference, scorer=wide, pairs=inputs["pairs"])
    assert done.returncode == 0, done.stderr[-3000:]
    assert four["metrics"]["chosen_logprob"] != pytest.approx(whole["metrics"]["chosen_logprob"], abs=1e-2)
    done, manifest = staged(train_dpo, given, tmp_path / "policy", **inputs)
    assert done.returncode == 0, done.stderr[-3000:]
    assert manifest["metrics"]["first_loss"] == pytest.approx(math.log(2), abs=1e-4 if dtype == "float32" else 0.03)
    assert manifest["metrics"]["last_loss"] < 0.6
    # What was saved are the start's own numbers plus a product of rank r, not what four bits had made of them.
    before, after = (load_file(folder / "model.safetensors") for folder in (wide, tmp_path / "policy"))
    assert before.keys() == after.keys()
    for name, value in before.items():
        moved = after[name].float() - value.to(after[name].dtype).float()
        if name.split(".")[-2] not in LINEAR:
            assert not moved.any()
        elif dtype == "float32":
            assert torch.linalg.matrix_rank(moved, atol=1e-4) == LORA["r"]
    config = json.loads((tmp_path / "policy" / "config.json").read_text())
    assert "quantization_config" not in config


@needs_bitsandbytes
@pytest.mark.long
@pytest.mark.parametrize("name", ["sft", "reward"])
def test_fine_tuning_on_four_bits(tmp_path, steps, wide, name):
    module, settings, inputs = steps[name]
    start = {"sft": "base", "reward": "init"}[name]
    given = settings | {"lora": LORA | {"quantization": "nf4"}, "learning_rate": 1e-2, "epochs": 8}
    done, manifest = staged(module, given, tmp_path / "model", **inputs | {start: wide})
    assert done.returncode == 0, done.stderr[-3000:]
    assert manifest["metrics"]["last_loss"] < 0.8 * manifest["metrics"]["first_loss"]


@needs_bitsandbytes
@pytest.mark.long
def test_a_killed_step_on_four_bits_goes_on(tmp_path, steps, wide, run_stage):
    _, settings, inputs = steps["dpo"]
    reference = tmp_path / "reference.parquet"
    done, _ = staged(
        score_reference, {"dtype": "float32", "quantization": "nf4"}, reference, scorer=wide, pairs=inputs["pairs"]
    )
    assert done.returncode == 0
    given = settings | {"lora": LORA | {"quantization": "nf4"}}
    inputs = {"start": wide, "pairs": inputs["pairs"], "reference": [reference]}
    _, whole = staged(train_dpo, given, tmp_path / "whole" / "policy", **inputs)
    killer = tmp_path / "killer"
    killer.mkdir()
    (killer / "sitecustomize.py").write_text(
        "import os\n"
        "from transformers import Trainer\n"
        "real = Trainer.training_step\n"
        "def step(self, *args, **kwargs):\n"
        "    if self.state.global_step == 5:\n"
        "        os._exit(9)\n"
        "    return real(self, *args, **kwargs)\n"
        "Trainer.training_step = step\n"
    )
    output = tmp_path / "killed" / "policy"
    path = os.pathsep.join([str(killer), os.environ.get("PYTHONPATH", "")])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", path)
        assert staged(train_dpo, given, output, OFTEN, **inputs)[0].returncode == 9
    done, killed = staged(train_dpo, given, output, OFTEN, **inputs)
    assert "checkpoint-5" in done.stderr
    assert killed["metrics"] == pytest.approx(whole["metrics"], abs=1e-5)
    assert not changed(tmp_path / "whole" / "policy", output)
