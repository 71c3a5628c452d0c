"""The configuration: defaults, types, references, and what its errors say."""

import copy
import json
import math
from typing import Annotated

import pytest
import yaml
from pydantic import TypeAdapter

from scripts.lib.kinds import families
from scripts.lib.kinds.common import Block
from scripts.lib.kinds.config import Config
from scripts.lib.kinds.schema import schema
from scripts.lib.planning import cluster
from scripts.lib.planning import config as configuration
from scripts.lib.planning import given as files
from scripts.lib.planning.config import load, merge, resolve
from scripts.lib.planning.plan import Plan
from scripts.lib.stage.artifact import canonical_json
from scripts.lib.stage.digest import ROOT
from scripts.lib.stage.errors import ConfigError

SHIPPED = [ROOT / "config" / "config.yaml", *sorted((ROOT / "config" / "presets").glob("*.yaml"))]
TEXT = """
preset: test
bases:
  small: {kind: world}
datasets:
  talks: {kind: world, type: conversations, split: sft, size: 10}
  choices: {kind: world, type: preferences, split: reward, size: 10}
  choices_heldout: {kind: world, type: preferences, split: reward_heldout, size: 10}
prompts:
  asks: {kind: world, split: iteration, size: 10}
  tests: {kind: world, split: evaluation, size: 10}
sft:
  first: {kind: train, base: small, dataset: talks, max_length: 128}
rewards:
  bt: {kind: bt, init: sft/first, dataset: choices, heldout: choices_heldout, max_length: 128}
  gold: {kind: verifier, verifier: world_gold}
samplings:
  eight: {max_prompt_tokens: 64, max_new_tokens: 32}
  judged: {k: 2, max_prompt_tokens: 64, max_new_tokens: 32, record_logprobs: true}
pairings:
  extremes: {}
runs:
  main: {sft: first, prompts: asks, reward: bt, sampling: eight, pairing: extremes, dpo: {max_length: 128}}
  offline: {sft: first, iterations: 1, mix: [{dataset: choices, pairing: extremes}], dpo: {max_length: 128}}
  raft: {sft: first, method: raft, prompts: asks, reward: bt, sampling: eight, raft: {max_length: 128}}
evaluation:
  test: {prompts: tests, sampling: judged, rewards: [gold]}
"""

SHORT = {"max_prompt_tokens": 64, "max_new_tokens": 32}


TWO = {"processes": 2, "gpus": 2}


def given(**changes):
    """The configuration above with changes at paths such as `runs__main__dpo__beta`."""
    config = yaml.safe_load(TEXT)
    for path, value in changes.items():
        *parents, last = path.split("__")
        block = config
        for part in parents:
            block = block.setdefault(part, {})
        block[last] = value
    return config


def without(path):
    config = yaml.safe_load(TEXT)
    *parents, last = path.split("__")
    block = config
    for part in parents:
        block = block[part]
    del block[last]
    return config


def resolved(config):
    """The resolved configuration as plain values."""
    return resolve(config).model_dump()


def loaded(*paths, **said):
    """The same of files."""
    return load(*paths, **said).model_dump()


def complaints(config):
    """The lines of the error that this configuration raises, one per mistake."""
    with pytest.raises(ConfigError) as caught:
        resolve(config)
    first, *lines = str(caught.value).split("\n")
    assert first == f"config: {len(lines)} error{'s' * (len(lines) > 1)}"
    return [line.removeprefix("  - ") for line in lines]


def complaint(config):
    (line,) = complaints(config)
    return line


def subclasses(of):
    """Everything that inherits from a block, by the name of its class: blocks of the configuration and settings."""
    return {kind.__name__: kind for one in of.__subclasses__() for kind in (one, *subclasses(one).values())}


def blocks():
    """Every kind of block of the configuration, and what several of them inherit from, by the name of its class."""
    known = subclasses(Block)
    read = [Config, *(known[name] for name in schema()["$defs"] if name != "Resources")]  # that one is a mapping
    return {kind.__name__: kind for leaf in read for kind in leaf.__mro__ if issubclass(kind, Block) and kind != Block}


# Defaults and types


@pytest.mark.parametrize("kind", blocks().values(), ids=blocks())
def test_every_default_is_what_validation_makes_of_it(kind):
    for name, field in kind.model_fields.items():
        default = field.get_default()
        if not field.is_required() and field.default_factory is None and not field.validate_default:
            typed = TypeAdapter(Annotated[field.annotation, "as in the model", *field.metadata]).validate_python(
                default, strict=True
            )
            assert json.dumps(typed) == json.dumps(default), name


@pytest.mark.parametrize("kind", blocks().values(), ids=blocks())
def test_every_key_says_what_it_means(kind):
    assert [name for name, field in kind.model_fields.items() if not (field.description or "").endswith(".")] == []


def test_defaults_are_filled_in_at_every_depth():
    config = resolved(given())
    assert config["seed"] == 1
    assert config["runs"]["main"]["iterations"] == 3
    assert config["runs"]["main"]["dpo"]["beta"] == 0.1
    assert config["runs"]["main"]["overrides"] == {}
    assert config["runs"]["main"]["keep"] == "all"
    assert config["runs"]["offline"]["mix"] == [{"dataset": "choices", "pairing": "extremes", "weight": 1.0}]
    assert config["samplings"]["eight"]["temperatures"] == [1.0]
    assert config["bases"]["small"]["schedule"] == "cosine"
    assert config["sft"]["first"]["seed"] is None
    assert config["runtime"]["train_micro_batch"] == 8


def test_results_defaults_to_the_presets_folder_and_run_to_the_first_run():
    config = resolve(given())
    assert (config.results, config.run) == ("results/test", "main")
    assert resolve(given(results=None, run=None)) == config
    assert resolve(given(results="/scratch/x")).results == "/scratch/x"
    assert resolve(given(run="raft")).run == "raft"


def test_resolving_changes_neither_what_was_given_nor_what_is_resolved():
    config = given()
    first = resolved(config)
    assert config == given()
    assert resolved(copy.deepcopy(first)) == first
    changed = given(runs__main__overrides={2: {"dpo": {"beta": 1}}}, resources={"train_dpo": {"gpus": 0}})
    assert resolve(resolved(changed)).runs["main"].at(2) == resolve(changed).runs["main"].at(2)
    assert resolved(resolved(changed)) == resolved(changed)


def test_two_configurations_share_no_default():
    one, other = resolve(given()), resolve(given())
    one.samplings["eight"].temperatures.append(0.5)
    one.runs["raft"].dpo.loss.append("ipo")
    assert other.samplings["eight"].temperatures == [1.0]
    assert resolve(given()).samplings["eight"].temperatures == [1.0]
    assert resolve(given()).runs["raft"].dpo.loss == ["sigmoid"]


@pytest.mark.parametrize(
    ("path", "value", "typed"),
    [
        ("runs__main__dpo__learning_rate", "1e-6", 1e-6),
        ("runs__main__dpo__learning_rate", "5E-7", 5e-7),
        ("runs__main__dpo__epochs", 2, 2.0),
        ("runs__main__dpo__batch_size", 64.0, 64),
        ("runs__main__dpo__batch_size", "64", 64),
        ("runs__main__dpo__loss_weights", [1], [1.0]),
        ("samplings__eight__temperatures", [1, 0], [1.0, 0.0]),
        ("samplings__eight__temperatures", ["5e-1"], [0.5]),
        ("runs__offline__mix", [{"dataset": "choices", "pairing": "extremes", "weight": "5e-1"}], None),
    ],
)
def test_numbers_are_typed_by_the_models(path, value, typed):
    config = resolved(given(**{path: value}))
    for part in path.split("__"):
        config = config[part]
    if typed is None:
        config, typed = config[0]["weight"], 0.5
    assert config == typed
    assert json.dumps(config) == json.dumps(typed)


@pytest.mark.parametrize("stage", ["train_dpo", "sample_rollouts", "build_pairs"])
def test_one_and_one_point_zero_give_the_same_settings(stage):
    wildcards = {
        "train_dpo": {"run": "main", "n": "1"},
        "sample_rollouts": {"policy": "sft/first", "sampling": "eight", "prompts": "asks-1", "shard": "0"},
        "build_pairs": {"pairing": "extremes"},
    }[stage]

    def settings(number):
        changes = {
            "runs__main__dpo__epochs": number(2),
            "runs__main__dpo__max_length": number(128),
            "samplings__eight__temperatures": [number(1)],
            "samplings__eight__k": number(8),
            "pairings__extremes__minimum_margin": number(0),
        }
        return Plan(resolve(given(**changes))).settings_json(stage, wildcards)

    assert settings(int) == settings(float)


def test_a_whole_configuration_is_the_same_whatever_the_order_of_its_keys():
    def turned(value):
        if isinstance(value, dict):
            return {key: turned(value[key]) for key in reversed(value)}
        return value

    assert canonical_json(resolved({**turned(given()), "run": "main"})) == canonical_json(resolved(given(run="main")))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_json_cannot_write_are_refused(value):
    assert complaint(given(runs__main__dpo__beta=value)).startswith("runs.main.dpo.beta = ")


# Errors


def test_an_unknown_key_is_named_with_the_nearest_known_one():
    assert complaint(given(runs__main__dpo__betta=1)) == "runs.main.dpo.betta: unknown key. Hint: did you mean beta?"
    assert complaint(given(evaluations={})) == "evaluations: unknown key. Hint: did you mean evaluation?"


def test_an_unknown_key_that_is_near_to_none_lists_the_known_ones():
    assert (
        complaint(given(rewards__gold__zzzzzz=1)) == "rewards.gold.zzzzzz: unknown key. Hint: known are kind, verifier."
    )


def test_an_unknown_key_in_a_list_entry_is_named_with_the_nearest_known_one():
    part = {"dataset": "choices", "pairing": "extremes", "wieght": 1}
    line = complaint(given(runs__offline__mix=[part]))
    assert line == "runs.offline.mix[0].wieght: unknown key. Hint: did you mean weight?"


def test_all_unknown_keys_and_wrong_values_are_reported_at_once():
    lines = complaints(given(sede=1, samplings__eight__k=0, dtype="float16", runs__main__dpo__beta="much"))
    assert [line.split(" ")[0] for line in lines] == ["sede:", "dtype", "samplings.eight.k", "runs.main.dpo.beta"]


def test_all_missing_names_are_reported_at_once():
    lines = complaints(given(sft__first__base="big", runs__main__reward="btt", runs__raft__sampling="nine", run="mian"))
    assert [line.split(" = ")[0] for line in lines] == [
        "run",
        "sft.first.base",
        "runs.main.reward",
        "runs.raft.sampling",
    ]


MISTAKES = [
    (given(bases__small__kind="wrld"), "bases.small.kind", "must be one of world, gguf, folder"),
    (given(bases__small__kind="wrld"), "bases.small.kind", "did you mean world?"),
    (without("bases__small__kind"), "bases.small.kind", "must be one of world, gguf, folder"),
    (without("preset"), "preset", "missing"),
    (without("runs__main__sft"), "runs.main.sft", "missing"),
    (without("datasets__talks__size"), "datasets.talks.size", "missing"),
    (given(runs={}), "runs", "is empty"),
    (given(runs__main=None), "runs.main", "must be object"),
    (given(samplings__eight__k=0), "samplings.eight.k", "must be at least 1"),
    (given(samplings__eight__k=True), "samplings.eight.k", "must be integer"),
    (given(samplings__eight__k=8.5), "samplings.eight.k", "must be integer"),
    (given(samplings__eight__top_p=1.5), "samplings.eight.top_p", "must be at most 1"),
    (given(samplings__eight__temperatures=[]), "samplings.eight.temperatures", "must have at least 1 entries"),
    (given(runs__main__dpo__beta=0), "runs.main.dpo.beta", "must be greater than 0"),
    (given(runs__main__dpo__adam_beta2=1), "runs.main.dpo.adam_beta2", "must be less than 1"),
    (given(runs__main__dpo__beta="1e-6x"), "runs.main.dpo.beta", "must be number"),
    (given(runs__main__dpo__loss=["sigmiod"]), "runs.main.dpo.loss", "did you mean sigmoid?"),
    (given(runs__main__method="dop"), "runs.main.method", "must be one of dpo, raft"),
    (given(preset="My Preset"), "preset", "must match"),
    (given(samplings__eight__k=math.inf), "samplings.eight.k", "must be finite"),
    (given(samplings__eight__record_logprobs=1), "samplings.eight.record_logprobs", "must be boolean"),
    (given(samplings__eight__record_logprobs="yes"), "samplings.eight.record_logprobs", "must be boolean"),
    (given(sft__first__lora=3), "sft.first.lora", "must be object or null"),
    (given(sft__first__lora={"quantization": "nf3"}), "sft.first.lora.quantization", "must be one of nf4, null"),
    (given(results=3), "results", "must be string or null"),
    (given(resources={"default": None}), "resources.default", "must be object"),
    (
        given(resources={"train_dop": {"memory": 3}}),
        "resources.train_dop",
        "unknown key. Hint: did you mean train_dpo?",
    ),
    # members of families
    (given(samplings__eight__engine="vlm"), "samplings.eight.engine", "did you mean vllm?"),
    (given(samplings__eight__engine=None), "samplings.eight.engine", "must be one of transformers, vllm"),
    (given(rewards__gold__verifier="bt"), "rewards.gold.verifier", "must be one of world_gold"),
    (given(evaluation__test__benchmark="reward"), "evaluation.test.benchmark", "did you mean rewards?"),
    (
        given(datasets__choices={"kind": "files", "type": "preferences", "path": "x", "adapter": "autos"}),
        "datasets.choices.adapter",
        "did you mean auto?",
    ),
    # references
    (given(run="mian"), "run", "did you mean main?"),
    (given(sft__first__base="big"), "sft.first.base", "no such entry in bases. Hint: known are small."),
    (given(sft__first__dataset="talk"), "sft.first.dataset", "did you mean talks?"),
    (given(sft__first__dataset="choices"), "sft.first.dataset", "must be 'conversations'"),
    (given(rewards__bt__dataset="talks"), "rewards.bt.dataset", "must be 'preferences'"),
    (given(rewards__bt__heldout="choices"), "rewards.bt.heldout", "shares prompts with the training set"),
    (given(rewards__bt__init="first"), "rewards.bt.init", "must be sft/NAME or base/NAME"),
    (given(rewards__bt__init="sft/frist"), "rewards.bt.init", "did you mean first?"),
    (given(rewards__bt__init="base/smal"), "rewards.bt.init", "did you mean small?"),
    (given(runs__main__sft="frist"), "runs.main.sft", "did you mean first?"),
    (given(runs__main__prompts="ask"), "runs.main.prompts", "did you mean asks?"),
    (given(runs__main__reward="btt"), "runs.main.reward", "did you mean bt?"),
    (given(runs__main__sampling="eigth"), "runs.main.sampling", "did you mean eight?"),
    (given(runs__main__pairing="extreme"), "runs.main.pairing", "did you mean extremes?"),
    (
        given(runs__offline__mix=[{"dataset": "talks", "pairing": "extremes"}]),
        "runs.offline.mix[0].dataset",
        "must be 'preferences'",
    ),
    (
        given(runs__offline__mix=[{"dataset": "choices", "pairing": "x"}]),
        "runs.offline.mix[0].pairing",
        "no such entry in pairings",
    ),
    (given(evaluation__test__prompts="asked"), "evaluation.test.prompts", "did you mean asks?"),
    (given(evaluation__test__rewards=["golden"]), "evaluation.test.rewards", "did you mean gold?"),
    (given(evaluation__test__sampling="eight"), "evaluation.test.sampling", "must have record_logprobs: true"),
    # numbers of different blocks
    (given(samplings__eight__temperatures=[1, 1, 1]), "samplings.eight.k", "not a multiple of its 3 temperatures"),
    (given(pairings__extremes__chosen_quantile=0), "pairings.extremes.chosen_quantile", "above rejected_quantile"),
    (given(runs__main__dpo__max_length=95), "runs.main.dpo.max_length", "have up to 96 tokens"),
    (given(runs__raft__raft__max_length=95), "runs.raft.raft.max_length", "have up to 96 tokens"),
    (without("runs__main__reward"), "runs.main.reward", "missing"),
    (without("runs__main__sampling"), "runs.main.sampling", "missing"),
    (without("runs__main__pairing"), "runs.main.pairing", "missing"),
    (without("runs__offline__mix"), "runs.offline.prompts", "only a dpo run with a `mix`"),
    (without("runs__raft__prompts"), "runs.raft.prompts", "only a dpo run with a `mix`"),
    (given(runs__main__dpo__loss_weights=[1, 2]), "runs.main.dpo.loss_weights", "one number for each of"),
    (given(runs__main__dpo__loss=["exo_pair"]), "runs.main.dpo.label_smoothing", "exo_pair needs more than 0"),
    (
        given(samplings__judged__engine="vllm", samplings__judged__check_responses=0),
        "evaluation.test.sampling",
        "has engine: vllm and check_responses: 0. Hint: leave check_responses out",
    ),
    (
        given(runs__main__dpo__loss=["aot"]),
        "runs.main.dpo.loss = ['aot']",
        "aot sorts all 128 rows of a batch, and a forward pass of one of 1 processes holds 8. "
        "Hint: set runtime.train_micro_batch to 128",
    ),
    (
        given(
            runs__main__dpo={"loss": ["sigmoid", "aot_unpaired"], "batch_size": 8, "max_length": 128},
            resources={"train_dpo": TWO},
        ),
        "runs.main.dpo.loss",
        "aot_unpaired sorts all 8 rows of a batch, and a forward pass of one of 2 processes holds 4",
    ),
    (given(sft__first__batch_size=20), "runtime.train_micro_batch", "does not divide sft.first.batch_size = 20"),
    # adapters and sharding
    (
        given(sft__first__lora={"quantization": "nf4"}, resources={"train_sft": {"sharding": "zero2"}}),
        "sft.first.lora.quantization",
        "excludes sharding zero2 of train_sft. Hint: set resources.train_sft.sharding to data",
    ),
    (
        given(runs__main__dpo__lora={"targets": ["all-linear", "q_proj"]}),
        "runs.main.dpo.lora.targets",
        "all-linear stands for all of them",
    ),
    (
        given(resources={"score_reference": {"sharding": "zero3"}}),
        "resources.score_reference.sharding",
        "this step takes one process",
    ),
    # keep
    (
        given(runs__main__keep=[1, 7]),
        "runs.main.keep[1]",
        "= 7: the run has iterations 1 to 3. Hint: name some of these",
    ),
    (given(runs__main__keep=[0]), "runs.main.keep[0]", "must be at least 1"),
    (given(runs__main__keep="first"), "runs.main.keep", "must match ^(all|last)$. Hint: Iterations whose weights"),
    (given(runs__main__keep=2), "runs.main.keep", "must be string or array"),
    # overrides
    (given(runs__main__overrides={4: {}}), "runs.main.overrides.4", "the run has iterations 1 to 3"),
    (given(runs__main__overrides={0: {}}), "runs.main.overrides.0", "must match"),
    (given(runs__main__overrides={2: {"reward": "btt"}}), "runs.main.overrides.2.reward", "did you mean bt?"),
    (given(runs__main__overrides={2: {"rewards": "bt"}}), "runs.main.overrides.2.rewards", "did you mean reward?"),
    (given(runs__main__overrides={2: {"dpo": {"betta": 1}}}), "runs.main.overrides.2.dpo.betta", "did you mean beta?"),
    (
        given(runs__main__overrides={2: {"dpo": {"beta": 0}}}),
        "runs.main.overrides.2.dpo.beta",
        "must be greater than 0",
    ),
]


COMMIT, OTHER = "a" * 40, "b" * 40
CHOICES = {"kind": "hub", "type": "preferences", "repo": "a/choices", "revision": COMMIT}
ASKS = {"kind": "hub", "repo": "a/asks-{n}", "revision": [COMMIT, OTHER, COMMIT], "size": 9}
BASE = {"kind": "hub", "repo": "a/base", "revision": COMMIT}
MISTAKES += [
    (given(bases__small={**BASE, "revision": "abc"}), "bases.small.revision", "must match ^([0-9a-f]{40}|main)$"),
    (given(bases__small={**BASE, "repo": "base"}), "bases.small.repo", "must match"),
    (given(bases__small={**BASE, "chat_template": "lama3.jinja"}), "bases.small.chat_template", "llama3.jinja?"),
    (given(bases__small={**BASE, "chat_template": "../x.jinja"}), "bases.small.chat_template", "must match"),
    (given(prompts__asks={**ASKS, "revision": COMMIT}), "prompts.asks.revision", "name a list, one commit for each"),
    (given(prompts__asks={**ASKS, "repo": "a/asks"}), "prompts.asks.revision", "`repo` has no {n}"),
    (given(prompts__asks={**ASKS, "revision": ["v1"]}), "prompts.asks.revision[0]", "must match"),
    (
        given(datasets__choices=CHOICES, datasets__choices_heldout={**CHOICES, "part": [0.5, 1]}),
        "rewards.bt.heldout",
        "shares prompts with the training set",
    ),
    (
        given(prompts__asks=ASKS, prompts__tests={**ASKS, "repo": "a/asks-3", "revision": COMMIT}),
        "evaluation.test.prompts",
        "training uses prompts of prompts.asks",
    ),
    (
        given(
            prompts__asks={**ASKS, "revision": "main"}, prompts__tests={**ASKS, "repo": "a/asks-7", "revision": "main"}
        ),
        "evaluation.test.prompts",
        "training uses prompts of prompts.asks",
    ),
    (given(extends="lama3_8b"), "extends", "no such preset. Hint: did you mean llama3_8b"),
]


# Pairs take two responses that differ, and no sequence is longer than its model is made for.
SHAPE = {"hidden_size": 64, "intermediate_size": 128, "layers": 1, "heads": 4, "kv_heads": 2, "vocabulary": 300}
BOUNDED = {**BASE, "shape": {**SHAPE, "positions": 8192}}
LONG = {"max_prompt_tokens": 8000, "max_new_tokens": 193}
MISTAKES += [
    (given(samplings__eight__k=1), "runs.main.sampling", "draws 1 response to a prompt, and dpo makes pairs of two"),
    (given(samplings__eight__temperatures=[0]), "runs.main.sampling", "draws greedily only, so all responses to a"),
    (
        given(samplings__greedy={**SHORT, "temperatures": [0, 0.0]}, runs__main__overrides={2: {"sampling": "greedy"}}),
        "runs.main.overrides.2.sampling",
        "make no pair. Hint: give samplings.greedy.temperatures one above 0.",
    ),
    (
        given(bases__small=BOUNDED, sft__first__max_length=8193),
        "sft.first.max_length",
        "= 8193: bases.small.shape.positions is 8192. Hint: lower it",
    ),
    (given(bases__small=BOUNDED, rewards__bt__max_length=8193), "rewards.bt.max_length", "positions is 8192"),
    (
        given(bases__small=BOUNDED, rewards__bt={**given()["rewards"]["bt"], "init": "base/small", "max_length": 9000}),
        "rewards.bt.max_length",
        "= 9000: bases.small.shape.positions is 8192",
    ),
    (given(bases__small=BOUNDED, runs__offline__dpo__max_length=9000), "runs.offline.dpo.max_length", "is 8192"),
    (
        given(bases__small=BOUNDED, runs__main__overrides={2: {"dpo": {"max_length": 9000}}}),
        "runs.main.overrides.2.dpo.max_length",
        "is 8192",
    ),
    (given(bases__small=BOUNDED, runs__raft__raft__max_length=9000), "runs.raft.raft.max_length", "is 8192"),
    (
        given(bases__small=BOUNDED, samplings__judged={**LONG, "k": 2, "record_logprobs": True}),
        "evaluation.test.sampling",
        "up to 8193 tokens, and bases.small.shape.positions is 8192. Hint: lower max_prompt_tokens or max_new_tokens",
    ),
    (given(bases__small={**BASE, "shape": {**SHAPE, "positions": 0}}), "bases.small.shape.positions", "at least 1"),
]


@pytest.mark.parametrize(("config", "key", "says"), MISTAKES, ids=[f"{key} {says}" for _, key, says in MISTAKES])
def test_a_mistake_is_one_line_with_its_key_and_what_is_allowed(config, key, says):
    line = complaint(config)
    assert line.startswith((f"{key} = ", f"{key}: ", f"{key}["))
    assert says in line


def test_every_complaint_ends_in_a_hint():
    lines = [complaint(config) for config, _, _ in MISTAKES]
    assert [line for line in lines if "Hint: " not in line] == []


@pytest.mark.parametrize("name", ["Small", "a-b", "a/b", "a b", "ä", "a.b"])
@pytest.mark.parametrize("block", ["samplings", "pairings"])
def test_names_that_are_no_folder_names_are_refused(block, name):
    assert complaint(given(**{f"{block}__{name}": {}})).startswith(f"{block}.{name}: names become folder names. Hint:")


def test_sources_of_a_hub_that_share_no_prompt_are_accepted():
    heldout = {**CHOICES, "part": [0.9, 1]}
    resolve(given(datasets__choices={**CHOICES, "part": [0, 0.9]}, datasets__choices_heldout=heldout))
    resolve(given(prompts__asks=ASKS, prompts__tests={**ASKS, "repo": "a/asks-7", "revision": COMMIT}))


@pytest.mark.parametrize(
    ("trained", "heldout", "shared"),
    [
        # a hub: one repository, whatever the letters' case or the commit
        ({}, {"pattern": "data/train-*"}, True),
        ({"pattern": "data/train-*"}, {"pattern": "data/train-00000*"}, True),
        ({"pattern": "data/train-*"}, {"pattern": "data/test-*"}, False),
        ({"pattern": "data/train-*"}, {"pattern": "data/test-*", "repo": "A/Choices", "revision": OTHER}, False),
        ({"pattern": "data/train-*"}, {"pattern": "*.parquet", "repo": "A/Choices", "revision": OTHER}, True),
        ({"pattern": "train/*"}, {"pattern": "[tv]*"}, True),
        ({"pattern": "a.jsonl"}, {"pattern": "a.jsonl.gz"}, False),
        ({"pattern": "a.jsonl"}, {"pattern": "a.jsonl"}, True),
        ({"pattern": "a.jsonl"}, {"pattern": "?.jsonl"}, True),
        ({"pattern": "b/*"}, {"pattern": "a.jsonl"}, False),
        ({"pattern": "*", "part": [0, 0.9]}, {"pattern": "data/train-*", "part": [0.9, 1]}, False),
        ({}, {"repo": "a/other"}, False),
        # local files: which they are, if they are there
        ({"path": "FOLDER"}, {"path": "FOLDER", "pattern": "train*"}, True),
        ({"path": "FOLDER", "pattern": "*.train.jsonl"}, {"path": "FOLDER", "pattern": "*.test.jsonl"}, False),
        ({"path": "FOLDER"}, {"path": "FOLDER/train.jsonl"}, True),
        ({"path": "FOLDER/../FOLDER/b.train.jsonl"}, {"path": "FOLDER", "pattern": "b*"}, True),
        ({"path": "FOLDER", "part": [0, 0.5]}, {"path": "FOLDER", "part": [0.5, 1]}, False),
        ({"path": "no/where"}, {"path": "no/../no/where", "pattern": "b*"}, True),
        ({"path": "no/where", "pattern": "a*"}, {"path": "no/where", "pattern": "b*"}, False),
    ],
)
def test_rows_that_are_trained_on_are_not_held_out(tmp_path, trained, heldout, shared):
    for name in ("train.jsonl", "b.train.jsonl", "b.test.jsonl"):
        (tmp_path / name).touch()
    local = {"kind": "files", "type": "preferences"}
    blocks = []
    for said in (trained, heldout):
        block = {**(local if "path" in said else CHOICES), **said}
        if "path" in said:
            block["path"] = said["path"].replace("FOLDER/../FOLDER", f"{tmp_path}/../{tmp_path.name}")
            block["path"] = block["path"].replace("FOLDER", str(tmp_path))
        blocks.append(block)
    config = given(datasets__choices=blocks[0], datasets__choices_heldout=blocks[1])
    if shared:
        assert complaint(config).startswith("rewards.bt.heldout = 'choices_heldout': shares prompts with the training")
    else:
        resolve(config)


def test_prompts_of_one_of_several_repositories_are_noticed_in_any_letters():
    config = given(prompts__asks=ASKS, prompts__tests={**ASKS, "repo": "A/Asks-3", "revision": OTHER, "pattern": "d*"})
    assert complaint(config).startswith("evaluation.test.prompts = 'tests': training uses prompts of prompts.asks")


def test_a_run_has_no_more_iterations_than_its_prompts_have_revisions():
    lines = complaints(given(prompts__asks={**ASKS, "revision": [COMMIT, OTHER]}))
    assert [line.split(":")[0] for line in lines] == ["runs.main.iterations = 3", "runs.raft.iterations = 3"]
    assert "prompts.asks.revision is for 2 iterations" in lines[0]


@pytest.mark.parametrize(("iterations", "size"), [(3, 10_001), (31, 1000), (1, 30_001)])
def test_a_run_asks_for_no_more_prompts_than_the_world_has(iterations, size):
    only = {"main": given()["runs"]["main"] | {"iterations": iterations}}
    line = complaint(given(runs=only, prompts__asks__size=size))
    text = f"the world has 30000 prompts, and prompts.asks.size is {size}. Hint: "
    assert line.startswith(f"runs.main.iterations = {iterations}: {text}")


@pytest.mark.parametrize(("iterations", "size"), [(3, 10_000), (30, 1000), (1, 30_000)])
def test_a_run_may_ask_for_all_prompts_that_the_world_has(iterations, size):
    only = {"main": given()["runs"]["main"] | {"iterations": iterations}}
    assert resolve(given(runs=only, prompts__asks__size=size)).runs["main"].iterations == iterations


def test_the_demos_once_differs_from_main_in_who_answers_its_prompts_and_in_nothing_else():
    config = load(ROOT / "config" / "config.yaml")
    main, once = config.runs["main"], config.runs["once"]
    assert once.model_dump() == main.model_dump() | {"iterations": 1, "prompts": once.prompts}
    each, whole = (config.prompts[run.prompts] for run in (main, once))
    same = {"size": main.iterations * each.size, "shard_prompts": whole.shard_prompts}
    assert whole.model_dump() == each.model_dump() | same


def test_numbers_are_names_too():
    assert 5 not in resolve(given(pairings={5: {}, "extremes": {}})).pairings
    assert "5" in resolve(given(pairings={5: {}, "extremes": {}})).pairings


def test_a_run_whose_max_length_just_holds_prompt_and_response_is_accepted():
    assert resolve(given(runs__main__dpo__max_length=96)).runs["main"].dpo.max_length == 96


def test_a_sampling_of_a_run_fits_the_positions_of_its_base():
    lengths = {"dpo": {"max_length": 9000}, "raft": {"max_length": 9000}}
    longer = given(bases__small=BOUNDED, samplings__eight=LONG)
    for name in ("main", "raft"):
        longer["runs"][name] |= lengths
    lines = complaints(longer)
    assert [line.split(" = ")[0] for line in lines] == [
        *("runs.main.sampling", "runs.main.dpo.max_length", "runs.raft.sampling", "runs.raft.raft.max_length")
    ]
    assert "and bases.small.shape.positions is 8192. Hint: lower max_prompt_tokens or max_new_tokens of" in lines[0]
    # What is said of no base is held against nothing, and the last position may be used.
    resolve({**longer, "bases": {"small": {**BASE, "shape": SHAPE}}})
    resolve(given(bases__small={**BASE, "shape": {**SHAPE, "positions": 8192}}, sft__first__max_length=8192))


def test_one_response_a_prompt_is_enough_where_nobody_makes_pairs():
    config = given(samplings__one={**SHORT, "k": 1}, runs__raft__sampling="one")
    assert resolve(config).samplings["one"].k == 1
    mixed = resolve(given(samplings__eight__temperatures=[0, 1]))
    assert mixed.samplings["eight"].temperatures == [0.0, 1.0]


def test_a_micro_batch_larger_than_a_batch_is_accepted():
    assert resolve(given(runtime__train_micro_batch=1024)).runtime.train_micro_batch == 1024


@pytest.mark.parametrize("loss", ["aot", "aot_unpaired"])
def test_a_loss_that_sorts_the_batch_is_accepted_where_one_pass_holds_it(loss):
    dpo = {"loss": [loss, "sigmoid"], "batch_size": 8, "max_length": 128}
    assert resolve(given(runs__main__dpo=dpo)).runs["main"].dpo.loss == [loss, "sigmoid"]


def test_exo_pair_with_label_smoothing_is_accepted():
    dpo = {"max_length": 128, "loss": ["exo_pair", "sft"], "label_smoothing": 0.001, "loss_weights": [1, 0.1]}
    assert resolve(given(runs__main__dpo=dpo)).runs["main"].dpo.loss_weights == [1.0, 0.1]


# Families, stages and renamed keys


def test_a_new_file_of_a_family_is_a_new_allowed_value(tmp_path, monkeypatch):
    for folder in families.FOLDERS.values():
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "mine.py").touch()
    monkeypatch.setattr(families, "LIB", tmp_path)
    files = {"kind": "files", "path": "x", "size": 3, "adapter": "mine"}
    config = resolve(
        given(
            samplings__eight__engine="mine",
            rewards__gold__verifier="mine",
            evaluation__test__benchmark="mine",
            prompts__asks=files,
            datasets__talks={**files, "type": "conversations", "adapter": "auto"},
        )
    )
    assert config.samplings["eight"].engine == config.rewards["gold"].verifier == config.prompts["asks"].adapter
    line = "evaluation.test.benchmark = 'rewards': must be one of mine. Hint: known are mine."
    assert line in complaints(given(evaluation__test__benchmark="rewards"))


def test_stages_that_ask_for_resources_are_those_that_the_plan_names(monkeypatch):
    monkeypatch.setattr(cluster, "submitted", lambda: ["weigh_sheep"])
    resources = resolve(given(resources={"default": {"gpus": 2}, "weigh_sheep": {"mem_mb": 500}})).resources
    assert resources.own("weigh_sheep").model_fields_set == {"mem_mb"}
    assert (resources.of("weigh_sheep").mem_mb, resources.of("weigh_sheep").gpus) == (500, 2)
    assert resources.of("train_dpo") == resources.default
    assert complaint(given(resources={"train_dpo": {}})).endswith("unknown key. Hint: known are default, weigh_sheep.")


@pytest.fixture
def unsaid():
    """No notice has been given yet."""
    configuration._notice.cache_clear()
    yield
    configuration._notice.cache_clear()


def test_the_old_name_of_a_key_is_read_with_a_notice(unsaid, capsys):
    new = given(runs__main__overrides={2: {"reward": "gold"}}, resources={"train_dpo": {"sharding": "zero2"}})
    old = given(runs__main__each={2: {"reward": "gold"}}, resources={"train_dpo": {"strategy": "zero2"}})
    assert resolve(new) == resolve(old, quiet=True)
    assert capsys.readouterr().err == ""
    assert resolve(old) == resolve(old)
    assert capsys.readouterr().err.splitlines() == [
        "runs.main.each is now called overrides. Hint: rename it; the old name is still read.",
        "resources.train_dpo.strategy is now called sharding. Hint: rename it; the old name is still read.",
    ]
    assert "strategy" in old["resources"]["train_dpo"]


def test_an_overlay_may_say_the_old_name_over_a_preset_with_the_new_one(unsaid, tmp_path):
    overlay = tmp_path / "mine.yaml"
    overlay.write_text("extends: llama3_8b\nresources: {train_dpo: {strategy: zero3}}\n")
    assert load(overlay).resources.own("train_dpo").sharding == "zero3"
    overlay.write_text("resources: {train_dpo: {strategy: zero3}}\n")
    assert load(ROOT / "config" / "presets" / "llama3_8b.yaml", overlay).resources.own("train_dpo").sharding == "zero3"


def test_both_names_of_a_key_are_refused(unsaid):
    both = given(runs__main__each={}, resources={"default": {"strategy": "data", "sharding": "data"}})
    both["runs"]["main"]["overrides"] = {}
    assert complaints(both) == [
        "runs.main.each: is now called overrides, which is given too. Hint: keep overrides only.",
        "resources.default.strategy: is now called sharding, which is given too. Hint: keep sharding only.",
    ]


def test_of_an_entry_under_a_wrong_name_only_the_name_is_said():
    assert complaint(given(samplings={**given()["samplings"], "A b": {"k": 0}})).startswith("samplings.A b: names")


# What an iteration sets for itself


def overridden(**dpo):
    return resolve(given(runs__main__overrides={2: {"dpo": dpo, "sampling": "judged"}}))


def test_an_iterations_own_settings_hold_in_that_iteration_only():
    config = overridden(beta=0.5)
    runs = [config.runs["main"].at(n) for n in (1, 2, 3)]
    assert [run.dpo.beta for run in runs] == [0.1, 0.5, 0.1]
    assert [run.sampling for run in runs] == ["eight", "judged", "eight"]
    assert [run.reward for run in runs] == ["bt", "bt", "bt"]
    assert runs[1].dpo.learning_rate == 5e-7


@pytest.mark.parametrize(("value", "typed"), [("1e-4", 1e-4), (1, 1.0)])
def test_an_iterations_own_numbers_are_typed_by_the_models(value, typed):
    settings = json.loads(Plan(overridden(learning_rate=value)).settings_json("train_dpo", {"run": "main", "n": "2"}))
    assert json.dumps(settings["learning_rate"]) == json.dumps(typed)


@pytest.mark.parametrize(
    ("dpo", "key"),
    [
        ({"max_length": 95}, "max_length"),
        ({"batch_size": 20}, "batch_size"),
        ({"loss": ["exo_pair"]}, "label_smoothing"),
        ({"loss": ["aot"]}, "overrides.2.dpo.loss"),
        ({"loss_weights": [1, 2]}, "loss_weights"),
    ],
)
def test_an_iterations_own_settings_are_checked_like_the_runs(dpo, key):
    assert key in complaint(given(runs__main__overrides={2: {"dpo": dpo}}))


def test_an_iteration_blames_no_key_that_it_leaves_to_the_run():
    lines = complaints(given(runs__main__dpo__max_length=95, runs__main__overrides={2: {"dpo": {}, "reward": "gold"}}))
    assert [line.split(" = ")[0] for line in lines] == ["runs.main.dpo.max_length"]


def test_an_iterations_own_sampling_must_fit_its_max_length():
    long = {**SHORT, "max_new_tokens": 33}
    config = given(
        runs__main__dpo__max_length=96, runs__main__overrides={2: {"sampling": "long"}}, samplings__long=long
    )
    assert "max_length" in complaint(config)


# Files


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_configuration_resolves(path):
    config = load(path)
    assert config.preset
    assert config.run in config.runs


def test_config_yaml_is_the_tiny_preset():
    assert load(SHIPPED[0]).results == "results/tiny"


def test_a_preset_lies_over_the_one_that_it_extends(tmp_path):
    overlay = tmp_path / "mine.yaml"
    overlay.write_text("extends: smollm2_135m\npreset: mine\nruns: {main: {dpo: {beta: 5e-1}}}\n")
    below, above = loaded(ROOT / "config" / "presets" / "smollm2_135m.yaml"), loaded(overlay)
    assert (above["preset"], above["results"], above["extends"]) == ("mine", "results/mine", None)
    assert above["runs"]["main"]["dpo"].pop("beta") == 0.5
    del below["runs"]["main"]["dpo"]["beta"]
    assert {**above, "preset": "", "results": ""} == {**below, "preset": "", "results": ""}
    assert resolved(copy.deepcopy(above | {"runs": loaded(overlay)["runs"]})) == loaded(overlay)


def test_without_a_preset_of_its_own_it_keeps_the_name_and_overlays_come_last(tmp_path):
    mine, last = tmp_path / "mine.yaml", tmp_path / "last.yaml"
    mine.write_text("extends: llama3_8b_concise\nseed: 5\n")
    last.write_text("pairings: {best_worst: {length_penalty: 0.01}}\n")
    config = load(mine, last)
    assert (config.preset, config.seed) == ("llama3_8b_concise", 5)
    assert config.pairings["best_worst"].length_penalty == 0.01
    assert config.bases == load(ROOT / "config" / "presets" / "llama3_8b.yaml").bases


def test_presets_that_extend_each_other_are_refused(tmp_path, monkeypatch):
    for one, other in (("one", "two"), ("two", "one")):
        (tmp_path / f"{one}.yaml").write_text(f"extends: {other}\n")
    monkeypatch.setattr(files, "PRESETS", tmp_path)
    assert complaint({"extends": "one"}).startswith("extends = 'one': goes in a circle: one -> two -> one. Hint: ")


def leaves(value, key=""):
    """Dotted key → value of every setting of a configuration."""
    if not isinstance(value, dict):
        return {key: value}
    return {name: leaf for part, below in value.items() for name, leaf in leaves(below, f"{key}.{part}").items()}


def differing(name):
    below, above = (leaves(loaded(ROOT / "config" / "presets" / f"{preset}.yaml")) for preset in ("llama3_8b", name))
    names = {key for key in below.keys() | above.keys() if below.get(key) != above.get(key)}
    return {key.removeprefix(".") for key in names - {".preset", ".results"}}


def test_the_concise_preset_differs_in_its_penalty_only():
    assert differing("llama3_8b_concise") == {"pairings.best_worst.length_penalty"}


def test_the_preset_with_adapters_differs_in_rates_rows_resources_and_an_adopted_start_only():
    blocks = {key.split(".")[0] for key in differing("llama3_8b_lora")}
    assert blocks == {"datasets", "sft", "rewards", "runs", "resources", "runtime", "forecast"}
    assert {key for key in differing("llama3_8b_lora") if key.startswith(("runtime", "forecast"))} == {
        *("runtime.shards_per_engine", "forecast.gpus")
    }
    deciding = ("datasets", "rewards", "runs")
    changed = {key.split(".")[-1] for key in differing("llama3_8b_lora") if key.startswith(deciding)}
    assert changed == {"size", "learning_rate", "r", "alpha", "dropout", "targets", "sft"}
    config = load(ROOT / "config" / "presets" / "llama3_8b_lora.yaml")
    for run in config.runs.values():  # adapters leave embeddings frozen, so the chat format must be there already
        assert config.sft[run.sft].model_dump() == {"kind": "adopt", "base": "llama3_instruct"}


def test_an_overlay_is_merged_over_config_yaml(tmp_path):
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("runs: {main: {dpo: {beta: 5e-1}}}")
    tiny, changed = loaded(SHIPPED[0]), loaded(overlay)
    assert changed["runs"]["main"]["dpo"].pop("beta") == 0.5
    del tiny["runs"]["main"]["dpo"]["beta"]
    assert changed == tiny


def test_later_overlays_win_and_a_preset_replaces(tmp_path):
    preset, one, two = tmp_path / "p.yaml", tmp_path / "1.yaml", tmp_path / "2.yaml"
    preset.write_text(TEXT)
    one.write_text("seed: 5\nruns: {main: {iterations: 5}}")
    two.write_text("seed: 6")
    config = load(preset, one, two)
    assert (config.seed, config.runs["main"].iterations) == (6, 5)
    assert set(config.runs) == {"main", "offline", "raft"}


def test_what_the_command_line_says_lies_over_all_files(tmp_path):
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("run: offline\nseed: 5\n")
    config = load(overlay, said={"run": "raft", "runs": {"raft": {"raft": {"epochs": "3"}}}})
    assert (config.preset, config.run, config.seed) == ("tiny", "raft", 5)
    assert config.runs["raft"].raft.epochs == 3.0
    assert load(said={"run": "raft"}).run == "raft"


def test_merge_lays_mappings_over_mappings_and_replaces_everything_else():
    below = {"a": {"x": 1, "y": [1, 2]}, "b": 1, "c": {"z": 1}}
    assert merge(below, {"a": {"y": [3]}, "b": {"n": 1}, "c": None}) == {
        "a": {"x": 1, "y": [3]},
        "b": {"n": 1},
        "c": None,
    }
    assert below == {"a": {"x": 1, "y": [1, 2]}, "b": 1, "c": {"z": 1}}
