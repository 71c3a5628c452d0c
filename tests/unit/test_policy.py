"""Saved policies know where their turns end, whatever the base's generation config says."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from scripts import adopt_sft, train_raft, train_sft
from scripts.lib.models import chat, loading, policy
from scripts.lib.stage import artifact
from tests.unit.steps import SFT, TRAINING

# What bases ship: another stop token, and habits of sampling that no policy here was trained with.
HABITS = {
    "eos_token_id": [7],
    "do_sample": True,
    "temperature": 0.6,
    "top_p": 0.9,
    "top_k": 20,
    "repetition_penalty": 5.0,
    "min_new_tokens": 9,
    "max_new_tokens": 11,
    "suppress_tokens": [9],
}


@pytest.fixture(scope="module")
def base(tmp_path_factory, tokenizer, save_model):
    """A base whose own generation config never ends a turn."""
    return save_model(tmp_path_factory.mktemp("base") / "model", tokenizer, generation=HABITS, hidden_size=32)


@pytest.fixture(scope="module")
def talk(tmp_path_factory, write):
    """Conversations that are all `say yes`, `yes`."""
    turns = [{"role": "user", "content": "say yes"}, {"role": "assistant", "content": "yes"}]
    rows = [{"conversation_id": str(i), "prompt_id": str(i), "source": "test", "messages": turns} for i in range(8)]
    return write(tmp_path_factory.mktemp("talk") / "talk.parquet", rows, "CONVERSATIONS")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, run_stage, base, talk):
    """A policy that has learnt to say `yes` and end its turn."""
    output = tmp_path_factory.mktemp("trained") / "policy"
    settings = SFT | {"packing": False, "epochs": 30, "learning_rate": 1e-2, "schedule": "constant"}
    assert run_stage(train_sft, settings, output, base=base, dataset=talk)[0] == 0
    return output


@pytest.fixture(scope="module")
def adopted(tmp_path_factory, run_stage, trained):
    """The same policy, taken over from a base that has another stop token and habits."""
    root = tmp_path_factory.mktemp("adopted")
    tokenizer, model = loading.load_tokenizer(trained), loading.load_policy(trained, "float32")
    model.generation_config = GenerationConfig(**HABITS)
    artifact.write_model(root / "base", lambda folder: loading.save(model, tokenizer, folder, "float32"))
    assert run_stage(adopt_sft, {}, root / "policy", base=root / "base")[0] == 0
    return root / "policy"


@pytest.mark.parametrize("made", ["trained", "adopted"])
def test_plain_generate_stops_at_the_end_of_the_turn(request, made, tokenizer):
    folder = request.getfixturevalue(made)
    ids = torch.tensor([chat.prompt_ids(tokenizer, [{"role": "user", "content": "say yes"}])])
    model = AutoModelForCausalLM.from_pretrained(folder)
    answers = [model.generate(ids, max_new_tokens=30)[0, ids.shape[1] :].tolist() for _ in range(2)]
    assert answers[0] == answers[1] == chat.completion_ids(tokenizer, [{"role": "user", "content": "say yes"}], "yes")
    # The base's own file would have sampled, and gone past the end of the turn.
    model.generation_config = GenerationConfig(**HABITS, pad_token_id=0)
    assert len(model.generate(ids, max_new_tokens=30)[0]) > ids.shape[1] + len(answers[0])


def settled(folder):
    """What a folder's generation config says."""
    said = json.loads((folder / "generation_config.json").read_text())
    return {key: value for key, value in said.items() if key != "transformers_version"}


@pytest.fixture
def stages(tmp_path, write, rollout, tokenizer, steps, talk, base):
    """name → (module, settings, inputs) of everything that makes a policy, each from the base above."""
    rows = [rollout("say yes", k, "yes", tokenizer=tokenizer) for k in range(2)]
    rewards = [{"prompt_id": row["prompt_id"], "k": row["k"], "reward": 1.0, "objectives": ""} for row in rows]
    given = {
        "start": base,
        "rollouts": write(tmp_path / "rollouts.parquet", rows, "ROLLOUTS"),
        "rewards": write(tmp_path / "rewards.parquet", rewards, "REWARDS"),
    }
    dpo, settings, inputs = steps["dpo"]
    other = {"reference": "another", "epochs": 0.25}  # the reference pass is of other weights than the base
    lora = {"r": 2, "alpha": 4, "dropout": 0, "targets": ["all-linear"], "quantization": None}
    sft = {**SFT, "packing": False}
    return {
        "sft": (train_sft, sft, {"base": base, "dataset": talk}),
        "lora": (train_sft, sft | {"lora": lora}, {"base": base, "dataset": talk}),
        "raft": (train_raft, TRAINING, given),
        "dpo": (dpo, settings | other, inputs | {"start": base}),
        "adopt": (adopt_sft, {}, {"base": base}),
    }


@pytest.mark.parametrize("name", ["sft", "lora", "raft", "dpo", "adopt"])
def test_every_stage_that_makes_a_policy_writes_its_stop_tokens(tmp_path, run_stage, stages, tokenizer, base, name):
    module, settings, inputs = stages[name]
    assert run_stage(module, settings, tmp_path / "made" / "policy", **inputs)[0] == 0
    folder = tmp_path / "made" / "policy"
    assert settled(folder) == {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": [chat.end_of_turn(tokenizer), tokenizer.eos_token_id, 7],
        "pad_token_id": tokenizer.pad_token_id,
    }
    # Sampling here stops at what the file says, and at nothing else, before and after.
    for place in (folder, base):
        stops = chat.stop_ids(loading.load_tokenizer(place), loading.generation_config(place))
        assert stops == settled(folder)["eos_token_id"]
    artifact.verify_model(folder)


def test_without_a_padding_token_the_first_stop_token_pads(base):
    tokenizer = loading.load_tokenizer(base)
    tokenizer.pad_token = None
    config = policy.generation_config(tokenizer, None)
    assert config.pad_token_id == config.eos_token_id[0] == chat.end_of_turn(tokenizer)


def test_a_base_that_ships_no_generation_config_gets_one(tmp_path, run_stage, base, tokenizer):
    bare = tmp_path / "base"
    model = loading.load_policy(base, "float32")
    artifact.write_model(bare, lambda folder: loading.save(model, tokenizer, folder, "float32"))
    (bare / "generation_config.json").unlink()
    artifact.digests_path(bare).unlink()
    artifact.write_model(bare, lambda folder: [(folder / f.name).write_bytes(f.read_bytes()) for f in bare.iterdir()])
    assert run_stage(adopt_sft, {}, tmp_path / "policy", base=bare)[0] == 0
    assert settled(tmp_path / "policy")["eos_token_id"] == [chat.end_of_turn(tokenizer), tokenizer.eos_token_id]
