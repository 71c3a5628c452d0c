"""Shared by the tests of the stages: a word-level tokenizer, tiny policies, and small tables."""

import json
from importlib import import_module

import pytest
from pydantic import TypeAdapter

from scripts.lib.kinds.runtime import StageRuntime
from tests.unit.steps import steps as steps

WORDS = (
    "red blue green gray pink one two three four five name say give list count please now color colors number good "
    "bad fine yes no and or then the a sky sea tree stone river done"
).split()
RUNTIME = {
    "device": "cpu",
    "torch_threads": 1,
    "train_micro_batch": 4,
    "generate_batch": 8,
    "vllm_memory": 0.9,
    "vllm_cpu_cache_gib": 1,
    "shards_per_engine": 1,
    "engine_tolerance": None,
    "vllm_tensor_parallel": 1,
    "score_tokens": 512,
    "checkpoint_minutes": 10,
    "gradient_checkpointing": False,
    "attention": "auto",
    "trackers": [],
}
QUESTIONS = ("name one color", "say yes", "list three colors please now", "count", "give the good number of the sea")


def typed(kind, settings):
    """Settings as a stage gets them: a block of that kind, or of one of a union's, read from JSON."""
    return TypeAdapter(kind).validate_json(json.dumps(settings))


def stage_runtime(**changes):
    """What a stage is told, with some keys changed."""
    return typed(StageRuntime, RUNTIME | changes)


@pytest.fixture(scope="session")
def run_stage():
    """Call a stage as its rule does: (exit code, manifest); the manifest is {} where the stage failed."""

    def call(module, settings, output, runtime=None, **inputs):
        argv = ["--settings", json.dumps(settings), "--runtime", json.dumps({**RUNTIME, **(runtime or {})})]
        for name, paths in inputs.items():
            argv += [f"--{name.replace('_', '-')}", *map(str, paths if isinstance(paths, list) else [paths])]
        code = module.main([*argv, "--output", str(output)])
        manifest = output.with_suffix(".json")
        assert manifest.exists() == (code == 0)
        return code, json.loads(manifest.read_text()) if code == 0 else {}

    return call


@pytest.fixture(scope="session")
def tokenizer():
    """Word level, fewer than 60 tokens, with a Llama-3-like template."""
    from scripts.make_base import make_tokenizer

    return make_tokenizer(WORDS)


@pytest.fixture(scope="session")
def save_model():
    """Write a tiny Llama of one layer with random weights: save_model(folder, tokenizer, seed, kind) → folder.

    `generation` goes into its generation_config.json.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

    from scripts.lib.models import loading
    from scripts.lib.stage import artifact

    torch.set_num_threads(1)

    def save(folder, tokenizer, seed=1, kind=LlamaForCausalLM, generation=None, **config):
        torch.manual_seed(seed)
        sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
        given = {"vocab_size": len(tokenizer), "max_position_embeddings": 512, "initializer_range": 0.4}
        given |= sizes | special | {"tie_word_embeddings": True} | config
        if kind is LlamaForSequenceClassification:
            given["num_labels"] = 1
        model = kind(LlamaConfig(**given))
        if generation:
            model.generation_config.update(**generation)
        artifact.write_model(folder, lambda temporary: loading.save(model, tokenizer, temporary, "float32"))
        return folder

    return save


@pytest.fixture(scope="session")
def policy(tmp_path_factory, tokenizer, save_model):
    """A policy's folder."""
    return save_model(tmp_path_factory.mktemp("policy") / "policy", tokenizer)


@pytest.fixture(scope="session")
def other_policy(tmp_path_factory, tokenizer, save_model):
    """A policy with the same tokenizer and other weights."""
    return save_model(tmp_path_factory.mktemp("other") / "policy", tokenizer, seed=2)


@pytest.fixture(scope="session")
def prompt():
    """A row of a prompts table: prompt(text)."""
    from scripts.lib.data import tables

    def row(text):
        messages = [{"role": "user", "content": text}]
        return {"prompt_id": tables.prompt_id(messages), "source": "test", "messages": messages, "metadata": ""}

    return row


@pytest.fixture(scope="session")
def prompts(tmp_path_factory, prompt):
    """A table of five prompts of different lengths."""
    from scripts.lib.data import tables
    from scripts.lib.data.schemas.prompts import PROMPTS

    path = tmp_path_factory.mktemp("prompts") / "set-1.parquet"
    tables.write_table(path, [prompt(text) for text in QUESTIONS], PROMPTS, ("prompt_id",))
    return path


@pytest.fixture(scope="session")
def rollout(prompt):
    """A row of a rollouts table: rollout(question, k, response, …); with a tokenizer its ids are the template's."""
    from scripts.lib.models import chat

    def row(question, k, response, finish_reason="stop", tokenizer=None, **given):
        asked = prompt(question)
        if tokenizer is None:
            prompt_ids, token_ids = [1, 2, 3], list(range(10, 11 + len(response.split())))
        else:
            prompt_ids = chat.prompt_ids(tokenizer, asked["messages"])
            token_ids = chat.completion_ids(tokenizer, asked["messages"], response)
        if finish_reason == "length":
            token_ids = token_ids[:-1]
        made = {
            "prompt_id": asked["prompt_id"],
            "k": k,
            "messages": asked["messages"],
            "metadata": "",
            "prompt_ids": prompt_ids,
            "response": response,
            "token_ids": token_ids,
            "finish_reason": finish_reason,
            "tokens": len(token_ids),
            "temperature": 1.0,
            "seed": k,
            "logprob": None,
            "trainable": True,
        }
        return made | given

    return row


@pytest.fixture(scope="session")
def write():
    """Write a table of one of the schemas: write(path, rows, "ROLLOUTS") → path."""
    from scripts.lib.data import tables

    keys = {"PAIRS": ("pair_id",), "PREFERENCES": ("pair_id",), "REFERENCE": ("pair_id",)}
    keys |= {"CONVERSATIONS": ("conversation_id",), "PROMPTS": ("prompt_id",)}

    def table(path, rows, schema):
        columns = getattr(import_module(f"scripts.lib.data.schemas.{schema.lower()}"), schema)
        tables.write_table(path, rows, columns, keys.get(schema, ("prompt_id", "k")))
        return path

    return table


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with inputs, in a repository that has a stage called `copying`."""
    from scripts.lib.stage import digest

    def clear():
        for cached in (digest._module, digest._code_digest, digest.pins):
            cached.cache_clear()

    repository = tmp_path / "repository"
    (repository / "scripts").mkdir(parents=True)
    (repository / "scripts" / "copying.py").write_text("X = 1\n")
    (repository / "envs").mkdir()
    (repository / "envs" / "requirements-train.txt").write_text("torch==2.13.0\n")
    monkeypatch.setattr(digest, "ROOT", repository)
    clear()
    for name in ("table", "one", "two"):
        (tmp_path / f"{name}.parquet").write_text(name)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    clear()


@pytest.fixture(scope="session")
def make_up():
    """Write made-up results for artifacts of a plan, with the manifests that the plan would write: make_up(plan)."""
    from pathlib import Path

    from scripts.lib.stage import artifact
    from scripts.lib.stage.digest import FORMAT, file_sha256

    def one(plan, path):
        place, (rule, wildcards) = Path(path), plan.maker(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        if place.suffix:
            place.write_text(f"contents of {path.removeprefix(plan.root)}")
        else:
            place.mkdir()
            artifact.digests_path(place).write_text(f"digests of {path.removeprefix(plan.root)}")
        inputs = [Path(name) for name in plan.reads(path)]
        manifest = {
            "format": FORMAT,
            "stage": rule,
            "settings": json.loads(plan.settings_json(rule, wildcards)),
            "code": plan.code(rule, wildcards),
            "inputs": {
                "all": [
                    {
                        "path": str(name.relative_to(plan.root)),
                        "sha256": file_sha256(name if name.suffix else artifact.digests_path(name)),
                    }
                    for name in inputs
                ]
            },
            "output": file_sha256(place if place.suffix else artifact.digests_path(place)),
            "counts": {},
            "metrics": {},
        }
        artifact.write_json(artifact.manifest_path(place), manifest)

    def every(plan):
        for path in plan.artifacts(*plan.asked("all")):
            one(plan, path)

    return every
