"""DeepSpeed's ZeRO on the processor: the losses of one plain process, whole weights, and steps that were killed."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from scripts import train_dpo
from scripts.lib.models import chat, loading, sharding
from scripts.lib.stage.digest import ROOT
from scripts.lib.stage.errors import InputError
from tests.unit.conftest import RUNTIME
from tests.unit.steps import STEPS

ZERO = ("zero2", "zero3")


def launched(processes, module, settings, inputs, output, runtime, **environment):
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
    words += ["--runtime", json.dumps({**RUNTIME, "train_micro_batch": 2, **runtime})]
    for name, paths in inputs.items():
        words += [f"--{name}", *map(str, paths if isinstance(paths, list) else [paths])]
    words += ["--output", str(output), "--results", str(output.parent)]
    return subprocess.run(
        words, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture(scope="module")
def plain(tmp_path_factory, steps, run_stage):
    """plain(name, dtype) → (manifest, folder) of a step by one plain process, made once."""
    made = {}

    def find(name, dtype="float32"):
        if (name, dtype) not in made:
            module, settings, inputs = steps[name]
            folder = tmp_path_factory.mktemp(name) / "model"
            code, manifest = run_stage(module, settings | {"dtype": dtype}, folder, {"train_micro_batch": 2}, **inputs)
            assert code == 0
            made[name, dtype] = manifest, folder
        return made[name, dtype]

    return find


def whole(folder):
    """A saved model's tensors; nothing else lies in its folder than any policy has."""
    names = {path.name for path in folder.iterdir()}
    assert names - {"generation_config.json"} == {
        *("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
    }
    return load_file(folder / "model.safetensors")


def generation(folder):
    """A saved model's generation config as it lies there; None for a reward model, which has none."""
    file = folder / "generation_config.json"
    return json.loads(file.read_text()) if file.exists() else None


# Long, because DeepSpeed compiles an op at its first use on a machine, which takes more than a minute.
@pytest.mark.long
@pytest.mark.parametrize("processes", [2, 1])
@pytest.mark.parametrize("strategy", ZERO)
@pytest.mark.parametrize("name", ["dpo", "sft", "reward"])
def test_zero_trains_with_the_losses_of_one_plain_process_and_saves_whole_weights(
    tmp_path, steps, plain, name, strategy, processes
):
    module, settings, inputs = steps[name]
    one, folder = plain(name)
    output = tmp_path / "model"
    done = launched(processes, module, settings, inputs, output, {"sharding": strategy})
    assert done.returncode == 0, done.stderr[-5000:]
    made = json.loads(output.with_suffix(".json").read_text())
    assert made["metrics"]["steps"] == STEPS
    for key in one["metrics"]:
        assert made["metrics"][key] == pytest.approx(one["metrics"][key], abs=1e-5), key
    assert made["counts"] == one["counts"]
    weights = whole(output)
    expected = whole(folder)
    assert weights.keys() == expected.keys()
    assert generation(output) == generation(folder)
    for key, value in expected.items():
        torch.testing.assert_close(weights[key], value, atol=1e-4, rtol=1e-3)
    tokenizer = loading.load_tokenizer(output)
    assert chat.stop_ids(tokenizer) == chat.stop_ids(loading.load_tokenizer(folder))
    run = json.loads((tmp_path / "model.run.json").read_text())
    assert run["processes"] == processes
    assert run["deepspeed"]["zero_optimization"]["stage"] == int(strategy[-1])
    assert not (tmp_path / "work").exists()


ACCUMULATED = """
from scripts.lib.models import sharding
real = sharding.check
def check(trainer, strategy):
    from transformers import TrainerCallback
    class Says(TrainerCallback):
        def on_train_begin(self, *args, **kwargs):
            print("accumulates in", trainer.model_wrapped.optimizer.gradient_accumulation_dtype, flush=True)
    trainer.add_callback(Says())
    real(trainer, strategy)
sharding.check = check
"""


@pytest.mark.long
@pytest.mark.parametrize("strategy", ZERO)
def test_bfloat16_zero_is_as_near_as_its_rounding_and_saves_bfloat16(tmp_path, steps, plain, strategy):
    module, settings, inputs = steps["dpo"]
    one, folder = plain("dpo", "bfloat16")
    output, site = tmp_path / "model", tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(ACCUMULATED)
    path = os.pathsep.join([str(site), str(ROOT)])
    done = launched(
        2, module, settings | {"dtype": "bfloat16"}, inputs, output, {"sharding": strategy}, PYTHONPATH=path
    )
    assert done.returncode == 0, done.stderr[-5000:]
    assert done.stdout.count("accumulates in torch.float32") == 2
    made = json.loads(output.with_suffix(".json").read_text())
    for key in ("first_loss", "last_loss"):
        assert made["metrics"][key] == pytest.approx(one["metrics"][key], abs=0.05)
    assert made["metrics"]["last_loss"] < made["metrics"]["first_loss"]
    assert {value.dtype for value in whole(output).values()} == {torch.bfloat16}
    assert whole(output).keys() == whole(folder).keys()


@pytest.mark.long
@pytest.mark.parametrize("strategy", ZERO)
@pytest.mark.parametrize("name", ["dpo", "reward"])
def test_adapters_under_zero_are_gathered_and_merged(tmp_path, steps, run_stage, name, strategy):
    module, settings, inputs = steps[name]
    lora = {"r": 4, "alpha": 8, "dropout": 0, "targets": ["all-linear"], "quantization": None}
    settings = settings | {"lora": lora}
    code, one = run_stage(module, settings, tmp_path / "plain" / "model", {"train_micro_batch": 2}, **inputs)
    assert code == 0
    output = tmp_path / "model"
    done = launched(2, module, settings, inputs, output, {"sharding": strategy, "gradient_checkpointing": True})
    assert done.returncode == 0, done.stderr[-5000:]
    made = json.loads(output.with_suffix(".json").read_text())
    for key in one["metrics"]:
        assert made["metrics"][key] == pytest.approx(one["metrics"][key], abs=1e-4), key
    for key, value in whole(tmp_path / "plain" / "model").items():
        torch.testing.assert_close(whole(output)[key], value, atol=1e-4, rtol=1e-3)


SPREAD = """
import sys
from pathlib import Path
from trl import DPOConfig
from scripts.lib.kinds.runtime import StageRuntime
from scripts.lib.kinds.trainer import Finetuned
from scripts.lib.models import loading, training
from scripts.lib.stage import ranks
from scripts.lib.stage.contract import Job

folder, runtime = Path(sys.argv[1]), StageRuntime.model_validate_json(sys.argv[2])
ranks.join(False)
settings = Finetuned(batch_size=4, learning_rate=1.0, schedule="constant", warmup_ratio=0.0, seed=1, dtype="float32")
job = Job("train_dpo", settings, runtime, {}, folder / "out", folder / "work")
arguments = training.arguments(DPOConfig, job, 8)
model = loading.load_policy(folder, **training.model_load_kwargs(job, loading.prepare(runtime)))
large = [p for p in model.parameters() if len(p.ds_shape) == 2]
# In one piece, or lines of the two processes would run into each other.
sys.stdout.write(f"held {sum(p.numel() for p in large)} of {sum(p.ds_numel for p in large)}\\n")
ranks.leave()
"""


@pytest.mark.long
def test_under_zero_3_no_process_holds_the_whole_model_even_while_it_is_loaded(tmp_path, policy):
    script = tmp_path / "spread.py"
    script.write_text(SPREAD)
    runtime = json.dumps(RUNTIME | {"sharding": "zero3", "train_micro_batch": 2})
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", str(script)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*words, str(policy), runtime], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    numbers = sum(value.numel() for value in load_file(policy / "model.safetensors").values() if value.dim() == 2)
    assert done.stdout.count(f"held 0 of {numbers}\n") == 2, done.stdout


@pytest.mark.long
@pytest.mark.parametrize("strategy", ZERO)
def test_a_zero_step_that_was_killed_goes_on_from_its_checkpoint(tmp_path, steps, plain, strategy):
    module, settings, inputs = steps["dpo"]
    one, folder = plain("dpo")
    killer = tmp_path / "killer"
    killer.mkdir()
    (killer / "sitecustomize.py").write_text(
        "import os\n"
        "if os.environ.get('RANK') == '1':\n"
        "    from transformers import Trainer\n"
        "    real = Trainer.training_step\n"
        "    def step(self, *args, **kwargs):\n"
        "        if self.state.global_step == 5:\n"
        "            os._exit(9)\n"
        "        return real(self, *args, **kwargs)\n"
        "    Trainer.training_step = step\n"
    )
    output, often = tmp_path / "model", {"sharding": strategy, "checkpoint_minutes": 0}
    done = launched(2, module, settings, inputs, output, often, PYTHONPATH=str(killer))
    assert done.returncode != 0
    assert not output.exists()
    done = launched(2, module, settings, inputs, output, often)
    assert done.returncode == 0, done.stderr[-5000:]
    # The last one may not be marked yet when the other process dies, right after both have written it.
    assert re.search(r"continuing from .*checkpoint-[45]\n", done.stderr)
    assert f"step 1/{STEPS}" not in done.stderr
    made = json.loads(output.with_suffix(".json").read_text())
    assert made["metrics"] == pytest.approx(one["metrics"], abs=1e-5)
    for key, value in whole(folder).items():
        torch.testing.assert_close(whole(output)[key], value, atol=1e-4, rtol=1e-3)


@pytest.mark.long
@pytest.mark.parametrize("strategy", ZERO)
def test_the_gate_stops_a_start_that_is_not_its_reference_under_zero(tmp_path, steps, other_policy, strategy):
    _, settings, inputs = steps["dpo"]
    output = tmp_path / "model"
    done = launched(2, train_dpo, settings, inputs | {"start": other_policy}, output, {"sharding": strategy})
    assert done.returncode != 0
    assert "gate: before the first step" in done.stderr
    assert not output.exists()


class Accelerator:
    def __init__(self, kind):
        from accelerate.utils import DistributedType

        self.distributed_type = DistributedType(kind)


class Trainer:
    def __init__(self, kind):
        self.accelerator = Accelerator(kind)


@pytest.mark.parametrize(("strategy", "kind"), [("zero2", "NO"), ("zero3", "MULTI_CPU"), ("data", "DEEPSPEED")])
def test_a_strategy_that_was_dropped_on_the_way_is_noticed(strategy, kind):
    with pytest.raises(InputError, match=rf"sharding = '{strategy}' was asked for, the trainer runs {kind}.\nHint: "):
        sharding.check(Trainer(kind), strategy)


@pytest.mark.parametrize(("strategy", "kind"), [("zero2", "DEEPSPEED"), ("data", "NO"), ("data", "MULTI_GPU")])
def test_a_strategy_that_is_there_passes(strategy, kind):
    sharding.check(Trainer(kind), strategy)


def test_a_missing_deepspeed_is_named_with_a_hint(monkeypatch):
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(InputError, match=r"deepspeed is not installed.\nHint: pip install -r envs/requirements-train"):
        sharding.prepare("zero2", on_gpu=False)


@pytest.mark.parametrize("strategy", ZERO)
def test_every_strategy_leaves_batch_and_clipping_to_the_settings(strategy):
    found = sharding.config(strategy)
    assert found["zero_optimization"]["stage"] == int(strategy[-1])
    batch = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    assert {found[key] for key in (*batch, "gradient_clipping")} == {"auto"}
    assert found["bf16"] == {"enabled": "auto"}
