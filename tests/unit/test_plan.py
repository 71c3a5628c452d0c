"""The plan: paths, closures, and which stage's settings a change reaches."""

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from scripts import prune_weights
from scripts.lib.planning.config import load, resolve
from scripts.lib.planning.plan import Plan
from scripts.lib.planning.runs import PairSource
from scripts.lib.stage.digest import ROOT
from scripts.lib.stage.errors import ConfigError

TINY = load(ROOT / "config" / "config.yaml").model_dump()
T = "results/tiny"
FIRST = f"{T}/sft/tiny/rollouts/best_of_8/requests-1"
SECOND = f"{T}/runs/main/iter1/rollouts/best_of_8/requests-2"
THIRD = f"{T}/runs/main/iter2/rollouts/best_of_8/requests-3"
MIX = [{"dataset": "annotations", "pairing": "as_given", "weight": 0.5}]


def plan(change: Callable[[dict[str, Any]], object] = lambda config: None) -> Plan:
    """The tiny preset's plan after a change to its configuration."""
    config = copy.deepcopy(TINY)
    change(config)
    return Plan(resolve(config))


def main_run(**keys):
    return plan(lambda config: config["runs"]["main"].update(keys))


def with_run(name, **keys):
    return plan(lambda config: config["runs"].update({name: {**copy.deepcopy(config["runs"]["main"]), **keys}}))


def settings_of(p: Plan, stage: str, **wildcards: str) -> str:
    """The settings string of a stage's job."""
    return p.settings_json(stage, wildcards)


# Paths


def test_models_and_tables_have_these_paths():
    p = plan()
    assert p.base("world") == f"{T}/base/world/model"
    assert p.policy("sft/tiny") == f"{T}/sft/tiny/policy"
    assert p.policy("runs/main/iter2") == f"{T}/runs/main/iter2/policy"
    assert p.reward_model("bt") == f"{T}/reward/bt/model"
    assert p.dataset("annotations") == f"{T}/data/annotations.parquet"
    assert p.prompts("requests-3") == f"{T}/prompts/requests-3.parquet"
    assert p.report() == f"{T}/report.html"
    assert p.model("base/world") == f"{T}/base/world/model"
    assert p.model("sft/tiny") == f"{T}/sft/tiny/policy"


def test_iteration_1_lies_beneath_the_sft_policy_and_iteration_n_beneath_the_one_before():
    p = plan()
    assert [p.sampled("main", n) for n in (1, 2, 3)] == [
        ("sft/tiny", "best_of_8", "requests-1"),
        ("runs/main/iter1", "best_of_8", "requests-2"),
        ("runs/main/iter2", "best_of_8", "requests-3"),
    ]
    assert p.rollouts(*p.sampled("main", 1)) == [f"{FIRST}/0.parquet"]
    assert p.rewards(*p.sampled("main", 2), "bt") == [f"{SECOND}/rewards/bt/0.parquet"]
    assert [p.pairs_of("main", n) for n in (1, 2, 3)] == [
        f"{place}/pairs/bt/best_worst.parquet" for place in (FIRST, SECOND, THIRD)
    ]
    assert p.logprobs("runs/main/iter1", "evaluation", "heldout-1", "sft/tiny") == [
        f"{T}/runs/main/iter1/rollouts/evaluation/heldout-1/logprobs/sft/tiny/0.parquet"
    ]


def test_shards_are_fixed_blocks_and_the_last_may_be_short():
    for shard_prompts, shards in ((750, [0]), (749, [0, 1]), (300, [0, 1, 2]), (1000, [0])):
        p = plan(lambda config, size=shard_prompts: config["prompts"]["requests"].update(shard_prompts=size))
        assert p.shards("requests-2") == shards
    assert main_run().rollouts("sft/tiny", "best_of_8", "requests-1") == [f"{FIRST}/0.parquet"]


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("previous", ["sft/tiny", "runs/main/iter1", "runs/main/iter2"]),
        ("sft", ["sft/tiny", "sft/tiny", "sft/tiny"]),
    ],
)
def test_start_and_reference_are_the_previous_policy_or_the_sft_policy(key, expected):
    assert [main_run(start=key).start("main", n) for n in (1, 2, 3)] == expected
    assert [main_run(reference=key).reference("main", n) for n in (1, 2, 3)] == expected


def test_pairs_carry_the_reference_of_the_iteration_that_trains_on_them():
    assert main_run().pair_sources("main", 2) == [
        PairSource(
            f"{SECOND}/pairs/bt/best_worst.parquet",
            f"{SECOND}/pairs/bt/best_worst/reference/sft/tiny.parquet",
            1.0,
        )
    ]
    (source,) = main_run(reference="previous").pair_sources("main", 2)
    assert source.reference == f"{SECOND}/pairs/bt/best_worst/reference/runs/main/iter1.parquet"


def test_training_on_all_takes_the_pairs_of_every_iteration_so_far():
    p = main_run(train_on="all")
    assert [source.pairs for source in p.pair_sources("main", 3)] == [p.pairs_of("main", n) for n in (1, 2, 3)]
    assert [source.pairs for source in p.pair_sources("main", 1)] == [p.pairs_of("main", 1)]
    assert {source.reference.rsplit("/reference/")[1] for source in p.pair_sources("main", 3)} == {"sft/tiny.parquet"}


def test_a_mix_adds_curated_pairs_after_the_runs_own_with_their_weight():
    sampled, curated = main_run(mix=MIX).pair_sources("main", 1)
    assert sampled.pairs == f"{FIRST}/pairs/bt/best_worst.parquet"
    assert curated == PairSource(
        f"{T}/data/annotations/pairs/as_given.parquet",
        f"{T}/data/annotations/pairs/as_given/reference/sft/tiny.parquet",
        0.5,
    )
    assert json.loads(settings_of(main_run(mix=MIX), "train_dpo", run="main", n="1"))["sources"] == [
        ["sft/tiny/rollouts/best_of_8/requests-1/pairs/bt/best_worst.parquet", 1.0],
        ["data/annotations/pairs/as_given.parquet", 0.5],
    ]


def test_raft_trains_on_rollouts_and_rewards():
    roles = plan().roles("train_raft", {"run": "raft", "n": "1"})
    assert (roles["rollouts"], roles["rewards"]) == ([f"{FIRST}/0.parquet"], [f"{FIRST}/rewards/bt/0.parquet"])
    assert plan().inputs(f"{T}/runs/raft/iter1/policy") == [
        f"{T}/sft/tiny/policy",
        f"{FIRST}/0.parquet",
        f"{FIRST}/rewards/bt/0.parquet",
    ]


def test_an_iteration_may_name_its_own_reward_and_sampling():
    p = main_run(overrides={"2": {"reward": "gold", "sampling": "evaluation"}})
    assert p.pairs_of("main", 1) == f"{FIRST}/pairs/bt/best_worst.parquet"
    second = SECOND.replace("best_of_8", "evaluation")
    assert p.pairs_of("main", 2) == f"{second}/pairs/gold/best_worst.parquet"


def test_five_betas_share_everything_before_the_first_training():
    def sweep(config):
        for i, beta in enumerate((0.01, 0.05, 0.1, 0.3, 1.0)):
            run = copy.deepcopy(config["runs"]["main"])
            run["dpo"]["beta"] = beta
            config["runs"][f"beta_{i}"] = run

    p = plan(sweep)
    names = [f"beta_{i}" for i in range(5)]
    assert len({tuple(p.rollouts(*p.sampled(name, 1))) for name in names}) == 1
    assert len({tuple(p.rewards(*p.sampled(name, 1), "bt")) for name in names}) == 1
    assert len({tuple(p.pair_sources(name, 1)) for name in names}) == 1
    assert len({settings_of(p, "train_dpo", run=name, n="1") for name in names}) == 5
    one = p.closure(*(p.policy(f"runs/{name}/iter1") for name in names[:1]))
    five = p.closure(*(p.policy(f"runs/{name}/iter1") for name in names))
    assert sorted(set(five) - set(one)) == [
        f"{T}/runs/{name}/iter1/policy{end}" for name in names[1:] for end in (".json", ".sha256")
    ]


# Targets


def beneath_an_iteration(place):
    """The files of one iteration's rollouts, rewards, pairs and reference pass."""
    tails = ["0", "rewards/bt/0", "pairs/bt/best_worst", "pairs/bt/best_worst/reference/sft/tiny"]
    return [f"{place}/{tail}{end}" for tail in tails for end in (".parquet", ".json")]


def test_iter3_policy_lists_every_file_beneath_it_and_nothing_else():
    tables = ["data/annotations", "data/annotations_heldout", "data/demonstrations"]
    tables += [f"prompts/requests-{n}" for n in (1, 2, 3)]
    models = ["base/world/model", "sft/tiny/policy", "reward/bt/model"]
    models += [f"runs/main/iter{n}/policy" for n in (1, 2, 3)]
    expected = [f"{T}/{table}{end}" for table in tables for end in (".parquet", ".json")]
    expected += [f"{T}/{model}{end}" for model in models for end in (".json", ".sha256")]
    expected += [path for place in (FIRST, SECOND, THIRD) for path in beneath_an_iteration(place)]
    assert plan().target("policy", 3) == sorted(expected)


@pytest.mark.parametrize(
    ("name", "n", "last", "absent"),
    [
        ("rollouts", 1, f"{FIRST}/0.parquet", "/rewards/"),
        ("rewards", 1, f"{FIRST}/rewards/bt/0.parquet", "/pairs/"),
        ("pairs", 1, f"{FIRST}/pairs/bt/best_worst.parquet", "/reference/"),
        ("policy", 1, f"{T}/runs/main/iter1/policy.sha256", "/iter2/"),
        ("pairs", 2, f"{SECOND}/pairs/bt/best_worst.parquet", "/iter2/"),
        ("sft", 1, f"{T}/sft/tiny/policy.sha256", "/rollouts/"),
        ("reward", 1, f"{T}/reward/bt/model.sha256", "/rollouts/"),
        ("evaluation", 1, f"{T}/runs/main/iter3/eval/heldout.parquet", "/raft/"),
    ],
)
def test_a_target_ends_at_its_stage(name, n, last, absent):
    files = plan().target(name, n)
    assert last in files
    assert not [path for path in files if absent in path]


def test_all_is_the_report_and_every_policy():
    files = plan().target("all")
    for run, iterations in (("main", 3), ("once", 1), ("offline", 1), ("raft", 1)):
        for n in range(1, iterations + 1):
            assert f"{T}/runs/{run}/iter{n}/policy.sha256" in files
            assert f"{T}/runs/{run}/iter{n}/eval/heldout.parquet" in files
    assert f"{T}/report.html" in files
    assert set(plan().target("report")) <= set(files)


@pytest.mark.parametrize("name", ["sft", "reward", "rollouts", "rewards", "pairs", "policy", "evaluation", "all"])
def test_no_target_names_a_weight_folder_and_every_artifact_comes_with_its_manifest(name):
    files = plan().target(name, 1)
    assert {path.rsplit(".", 1)[-1] for path in files} <= {"parquet", "json", "sha256", "html"}
    for path in files:
        assert path.rsplit(".", 1)[0] + ".json" in files


def test_a_target_acts_on_the_run_that_the_configuration_names():
    p = plan(lambda config: config.update(run="raft"))
    assert f"{T}/runs/raft/iter1/policy.sha256" in p.target("policy", 1)
    assert not [path for path in p.target("policy", 1) if "/runs/main/" in path]


@pytest.mark.parametrize("name", ["rollouts", "rewards", "pairs"])
def test_an_offline_run_has_no_rollouts_rewards_or_pairs_of_its_own(name):
    p = plan(lambda config: config.update(run="offline"))
    with pytest.raises(ConfigError, match=r"trains on curated preferences only(?s:.*)Hint: ask for iter1_policy"):
        p.target(name, 1)
    assert f"{T}/data/annotations/pairs/as_given/reference/sft/tiny.parquet" in p.target("policy", 1)


def test_a_raft_run_has_no_pairs_of_its_own():
    p = plan(lambda config: config.update(run="raft"))
    with pytest.raises(ConfigError, match="Hint"):
        p.target("pairs", 1)


@pytest.mark.parametrize("name", ["rollouts", "rewards", "pairs", "policy"])
@pytest.mark.parametrize("n", [0, 4])
def test_an_iteration_out_of_range_is_refused_with_the_range(name, n):
    says = f"run 'main' has iterations 1 to 3; there is no iteration {n}. Hint: raise runs.main.iterations."
    with pytest.raises(ConfigError) as caught:
        plan().target(name, n)
    assert str(caught.value) == says


def test_a_shard_out_of_range_is_refused_with_the_range():
    p = plan(lambda config: config["prompts"]["requests"].update(shard_prompts=300))
    given = {"policy": "sft/tiny", "sampling": "best_of_8", "prompts": "requests-1"}
    shards = [json.loads(settings_of(p, "sample_rollouts", shard=shard, **given)) for shard in "012"]
    assert [(shard["first"], shard["prompts"]) for shard in shards] == [(0, 300), (300, 300), (600, 150)]
    with pytest.raises(ConfigError, match=r"'requests-1' has shards 0 to 2; there is no shard 3\. Hint: "):
        settings_of(p, "sample_rollouts", shard="3", **given)


def test_an_unknown_run_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"'mian' is not in the config\. Hint: it has main, once, offline"):
        plan().run("mian", 1)


@pytest.mark.parametrize("root", ["/scratch/reference/x", "/scratch/pairs/rollouts"])
def test_the_results_folder_may_have_any_name(root):
    moved = plan(lambda config: config.update(results=root)).target("policy", 2)
    assert moved == sorted(path.replace(T, root) for path in plan().target("policy", 2))


@pytest.mark.parametrize("name", ["reference", "pairs", "rewards", "rollouts", "policy", "eval"])
def test_a_run_may_be_named_like_a_folder_of_the_grammar(name):
    p = with_run(name)
    renamed = p.closure(p.policy(f"runs/{name}/iter3"))
    assert renamed == sorted(
        path.replace("/runs/main/", f"/runs/{name}/") for path in p.closure(p.policy("runs/main/iter3"))
    )


def test_the_inputs_of_every_artifact_of_all_are_in_all_too():
    p = plan()
    files = set(p.target("all"))
    artifacts = {path for path in files if path.endswith((".parquet", ".html"))}
    artifacts |= {path.removesuffix(".sha256") for path in files if path.endswith(".sha256")}
    for artifact in artifacts:
        assert set(p.inputs(artifact)) <= artifacts
        assert artifact not in p.inputs(artifact)


@pytest.mark.parametrize(
    "name", ["tiny_all", "tiny_offline_iter1_policy", "smollm2_135m_cpu_all", "llama3_8b_all", "qwen2_5_7b_all"]
)
def test_every_job_of_the_golden_tables_is_made_by_the_rule_that_the_plan_says(name):
    preset = "config.yaml" if name.startswith("tiny") else f"presets/{name.removesuffix('_all')}.yaml"
    p = Plan(load(ROOT / "config" / preset))
    lines = (ROOT / "tests" / "plan" / "golden" / f"{name}.txt").read_text().splitlines()
    jobs = [line.split(" ") for line in lines if " " in line]
    assert len(jobs) > 6
    assert [p.maker(path)[0] for _, path in jobs] == [rule for rule, _ in jobs]
    assert [p.artifact(path) for _, path in jobs] == [path for _, path in jobs]


@pytest.mark.parametrize(
    ("path", "rule", "wildcards"),
    [
        ("base/world/model", "make_base", {"base": "world"}),
        ("source/datasets/talks/files", "fetch_data", {"block": "datasets", "source": "talks"}),
        ("source/prompts/asks-2/files", "fetch_data", {"block": "prompts", "source": "asks-2"}),
        ("sft/tiny/policy", "train_sft", {"sft": "tiny"}),
        ("runs/raft/iter2/policy", "train_raft", {"run": "raft", "n": "2"}),
        ("prompts/requests-3.parquet", "make_prompts", {"prompts": "requests-3"}),
        ("data/annotations/pairs/as_given.parquet", "select_pairs", {"dataset": "annotations", "pairing": "as_given"}),
        (
            "data/annotations/pairs/as_given/reference/runs/main/iter1.parquet",
            "score_reference",
            {"tail": "data/annotations/pairs/as_given", "quantized": "", "scorer": "runs/main/iter1"},
        ),
        (
            "runs/main/iter1/rollouts/best_of_8/requests-2/pairs/bt/best_worst/reference/sft/tiny.parquet",
            "score_reference",
            {
                "tail": "runs/main/iter1/rollouts/best_of_8/requests-2/pairs/bt/best_worst",
                "quantized": "",
                "scorer": "sft/tiny",
            },
        ),
        (
            "data/annotations/pairs/as_given/reference/nf4/sft/tiny.parquet",
            "score_reference",
            {"tail": "data/annotations/pairs/as_given", "quantized": "nf4/", "scorer": "sft/tiny"},
        ),
        (
            "runs/main/iter1/rollouts/best_of_8/requests-2/pairs/bt/best_worst/reference/nf4/sft/tiny.parquet",
            "score_reference",
            {
                "tail": "runs/main/iter1/rollouts/best_of_8/requests-2/pairs/bt/best_worst",
                "quantized": "nf4/",
                "scorer": "sft/tiny",
            },
        ),
        (
            "sft/tiny/rollouts/evaluation/heldout-1/rewards/gold/0.parquet",
            "verify_rollouts",
            {
                "policy": "sft/tiny",
                "sampling": "evaluation",
                "prompts": "heldout-1",
                "reward": "gold",
                "shard": "0",
            },
        ),
        (
            "runs/main/iter1/rollouts/evaluation/heldout-1/logprobs/sft/tiny/12.parquet",
            "score_logprobs",
            {
                "policy": "runs/main/iter1",
                "sampling": "evaluation",
                "prompts": "heldout-1",
                "scorer": "sft/tiny",
                "shard": "12",
            },
        ),
        ("runs/main/iter3/eval/heldout.parquet", "evaluate", {"policy": "runs/main/iter3", "benchmark": "heldout"}),
        ("report.html", "build_report", {}),
    ],
)
def test_an_artifact_is_made_by_this_rule_with_these_wildcards(path, rule, wildcards):
    assert plan().maker(f"{T}/{path}") == (rule, wildcards)


@pytest.mark.parametrize("path", [f"{T}/no/such/thing", f"{T}/sft/tiny", "elsewhere/sft/tiny/policy", f"{T}/runs/a/b"])
def test_a_path_outside_the_grammar_is_refused(path):
    with pytest.raises(ConfigError, match=rf"{path}: no artifact has this path\. Hint: "):
        plan().maker(path)


@pytest.mark.parametrize(
    ("file", "artifact"),
    [
        ("sft/tiny/policy.json", "sft/tiny/policy"),
        ("runs/main/iter1/policy.sha256", "runs/main/iter1/policy"),
        ("runs/main/iter1/policy/", "runs/main/iter1/policy"),
        ("reward/bt/model.json", "reward/bt/model"),
        ("source/datasets/talks/files.sha256", "source/datasets/talks/files"),
        ("prompts/requests-1.json", "prompts/requests-1.parquet"),
        ("report.json", "report.html"),
        ("data/policy/pairs/model.json", "data/policy/pairs/model.parquet"),
    ],
)
def test_a_manifest_and_digests_belong_to_their_artifact(file, artifact):
    assert plan().artifact(f"{T}/{file}") == f"{T}/{artifact}"


def test_a_target_of_the_command_line_is_a_name_or_a_file():
    p = plan()
    assert p.asked("iter3_policy") == [f"{T}/runs/main/iter3/policy"]
    assert p.asked("sft") == p.asked(f"{T}/sft/tiny/policy.json") == [f"{T}/sft/tiny/policy"]
    with pytest.raises(ConfigError, match="no target 'nothing'"):
        p.asked("nothing")


def test_artifacts_stand_after_all_that_they_are_made_from():
    p = plan()
    artifacts = p.artifacts(*p.asked("all"))
    assert len(artifacts) == len(set(artifacts))
    assert p.closure(*p.asked("all")) == p.target("all")
    for i, path in enumerate(artifacts):
        assert set(p.inputs(path)) <= set(artifacts[:i])


# Settings: what reaches which stage


def settings(p: Plan) -> dict[str, str]:
    """The settings string of every job of `all`, by artifact, and the stage of each as its key's first word."""
    jobs = {}
    for artifact in p.artifacts(*p.asked("all")):
        stage, wildcards = p.maker(artifact)
        jobs[f"{stage} {artifact.removeprefix(p.root + '/')}"] = settings_of(p, stage, **wildcards)
    return jobs


BEFORE = settings(plan())


def changed(change):
    """Jobs of `all` whose settings differ after a change, new jobs left out."""
    now = settings(plan(change))
    return {key for key in BEFORE if now.get(key) != BEFORE[key]}


def stages(keys):
    return {key.split(" ")[0] for key in keys}


def put(*path_and_value):
    *parents, last, value = path_and_value

    def change(config):
        for part in parents:
            config = config[part]
        config[last] = value

    return change


def test_every_stage_has_jobs_in_the_tiny_preset_but_those_of_adopted_and_converted_models():
    assert stages(BEFORE) == {
        "build_pairs",
        "build_report",
        "curate_data",
        "evaluate",
        "make_base",
        "make_prompts",
        "sample_rollouts",
        "score_logprobs",
        "score_reference",
        "score_rollouts",
        "select_pairs",
        "train_dpo",
        "train_raft",
        "train_reward",
        "train_sft",
        "verify_rollouts",
    }


MAIN = {f"train_dpo runs/main/iter{n}/policy" for n in (1, 2, 3)}
SAMPLED = {
    f"sample_rollouts {policy}/rollouts/best_of_8/{prompts}/0"
    for policy, prompts in (
        ("sft/tiny", "requests-1"),
        ("sft/tiny", "all_requests-1"),
        ("runs/main/iter1", "requests-2"),
        ("runs/main/iter2", "requests-3"),
    )
}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        pytest.param(put("runs", "main", "dpo", "beta", 0.2), MAIN, id="beta of one run"),
        pytest.param(put("runs", "main", "dpo", "seed", 7), MAIN, id="seed of one run's training"),
        pytest.param(
            put("runs", "main", "overrides", {"2": {"dpo": {"beta": 0.2}}}),
            {"train_dpo runs/main/iter2/policy"},
            id="beta of one iteration",
        ),
        pytest.param(put("samplings", "best_of_8", "k", 4), {f"{key}.parquet" for key in SAMPLED}, id="K"),
        pytest.param(
            put("samplings", "best_of_8", "temperatures", [0.7]),
            {f"{key}.parquet" for key in SAMPLED},
            id="temperature",
        ),
        pytest.param(
            put("rewards", "bt", "learning_rate", 2e-3), {"train_reward reward/bt/model"}, id="reward's learning rate"
        ),
        pytest.param(put("sft", "tiny", "epochs", 2), {"train_sft sft/tiny/policy"}, id="SFT's epochs"),
        pytest.param(put("bases", "world", "layers", 1), {"make_base base/world/model"}, id="base's layers"),
        pytest.param(
            put("datasets", "annotations", "size", 4000), {"curate_data data/annotations.parquet"}, id="data set's size"
        ),
        pytest.param(
            put("pairings", "as_given", "size", 1400),
            {"select_pairs data/annotations/pairs/as_given.parquet"},
            id="size of curated pairs",
        ),
        pytest.param(
            put("runs", "raft", "raft", "learning_rate", 1e-4),
            {"train_raft runs/raft/iter1/policy"},
            id="RAFT's learning rate",
        ),
    ],
)
def test_a_setting_changes_exactly_these_jobs(change, expected):
    assert changed(change) == expected


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (put("pairings", "best_worst", "length_penalty", 0.001), {"build_pairs"}),
        (put("evaluation", "heldout", "confidence", 0.9), {"evaluate"}),
        (put("samplings", "evaluation", "top_p", 0.9), {"sample_rollouts"}),
        # The set is the same, and so is its table; which of its rows a shard holds is a setting of who reads them.
        (put("prompts", "requests", "shard_prompts", 800), set()),
        (put("prompts", "requests", "shard_prompts", 400), {"sample_rollouts"}),
        (put("prompts", "requests", "size", 751), {"make_prompts", "sample_rollouts"}),
        (put("runs", "main", "start", "sft"), {"train_dpo"}),
        (put("samplings", "unused", {"k": 3}), set()),
        (put("run", "raft"), set()),
        (put("results", "/scratch/tiny"), set()),
        (put("runs", "another", {"sft": "tiny", "mix": MIX, "dpo": {"max_length": 128}}), {"build_report"}),
    ],
    ids=lambda value: "+".join(sorted(value)) or "nothing" if isinstance(value, set) else "",
)
def test_a_setting_changes_jobs_of_these_stages_only(change, expected):
    assert stages(changed(change)) == expected


@pytest.mark.parametrize("key", sorted(TINY["runtime"]))
def test_a_runtime_key_changes_no_settings(key):
    other = {
        "device": "cuda",
        "gradient_checkpointing": True,
        "stop_on_warnings": True,
        "torch_threads": 3,
        "train_micro_batch": 16,
        "vllm_memory": 0.5,
        "rollout_python": "/envs/rollout/bin/python",
        "attention": "eager",
        "trackers": ["wandb"],
    }
    assert changed(put("runtime", key, other.get(key, 123))) == set()


def test_the_order_of_keys_changes_no_settings():
    def turn(value):
        if isinstance(value, dict):
            return {key: turn(value[key]) for key in reversed(value)}
        return value

    assert changed(lambda config: config.update(turn(config))) == set()
    reversed_ = {**turn(TINY), "runs": {name: turn(run) for name, run in TINY["runs"].items()}}
    reversed_["samplings"] = turn(TINY["samplings"])
    assert settings(Plan(resolve(reversed_))) == BEFORE


def test_the_top_level_seed_reaches_every_stage_that_draws_at_random_and_a_blocks_own_seed_replaces_it():
    drawing = {"make_base", "curate_data", "make_prompts", "train_sft", "train_reward", "sample_rollouts"}
    drawing |= {"build_pairs", "train_dpo", "train_raft", "evaluate"}
    assert stages(changed(put("seed", 9))) == drawing
    assert json.loads(settings_of(plan(put("sft", "tiny", "seed", 5)), "train_sft", sft="tiny"))["seed"] == 5


def test_one_iteration_more_changes_no_settings_of_the_earlier_ones():
    more = settings(plan(put("runs", "main", "iterations", 4)))
    assert stages(key for key in BEFORE if more[key] != BEFORE[key]) == {"build_report"}
    assert {key for key in more if key not in BEFORE and "train_" in key} == {"train_dpo runs/main/iter4/policy"}


def test_the_first_training_starts_at_its_reference_and_later_ones_do_not():
    p = plan()
    each = [json.loads(settings_of(p, "train_dpo", run="main", n=str(n))) for n in (1, 2, 3)]
    starts = [settings["start"] == settings["reference"] for settings in each]
    assert starts == [True, False, False]


def test_settings_are_one_line_of_canonical_json():
    for text in BEFORE.values():
        assert json.dumps(json.loads(text), sort_keys=True, ensure_ascii=False) == text
        assert "\n" not in text


def test_local_files_enter_settings_by_their_bytes_and_not_by_their_place(tmp_path):
    def dataset(folder):
        block = {"kind": "files", "type": "preferences", "path": str(folder), "pattern": "*.jsonl"}
        return settings_of(plan(put("datasets", "local", block)), "curate_data", dataset="local")

    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.jsonl").write_text("{}\n")
        (tmp_path / name / "note.txt").write_text(name)
    first = dataset(tmp_path / "one")
    assert dataset(tmp_path / "two") == first
    (tmp_path / "two" / "a.jsonl").write_text("{ }\n")
    assert dataset(tmp_path / "two") != first


COMMITS = ["a" * 40, "b" * 40]


def from_hub(**changes):
    """The tiny preset with a base, a data set and two prompt sets of a hub."""

    def change(config):
        config["bases"]["llama"] = {"kind": "hub", "repo": "a/llama", "revision": COMMITS[0]}
        config["datasets"]["talks"] = {"kind": "hub", "type": "conversations", "repo": "a/talks", "revision": "main"}
        config["prompts"]["many"] = {"kind": "hub", "repo": "a/many-{n}", "revision": COMMITS, "size": 9}
        config["prompts"]["one"] = {"kind": "hub", "repo": "a/one", "revision": COMMITS[0], "size": 9}
        for path, value in changes.items():
            block, name, key = path.split("__")
            config[block][name][key] = value

    return plan(change)


def test_what_comes_from_a_hub_is_read_from_a_folder_of_its_own():
    p = from_hub()
    assert p.maker(p.base("llama")) == ("fetch_base", {"base": "llama"})
    assert p.inputs(p.dataset("talks")) == [f"{T}/source/datasets/talks/files"]
    assert p.inputs(p.dataset("annotations")) == []
    assert [p.inputs(p.prompts(f"many-{n}")) for n in (1, 2)] == [
        [f"{T}/source/prompts/many-{n}/files"] for n in (1, 2)
    ]
    assert [p.inputs(p.prompts(f"one-{n}")) for n in (1, 2)] == [[f"{T}/source/prompts/one/files"]] * 2
    assert set(p.closure(p.dataset("talks"))) == {
        f"{T}/data/talks.parquet",
        f"{T}/data/talks.json",
        f"{T}/source/datasets/talks/files.json",
        f"{T}/source/datasets/talks/files.sha256",
    }


def test_sources_without_a_commit_are_named():
    several = [COMMITS[0], "main"]
    used = {"sft__tiny__dataset": "talks", "runs__main__prompts": "many", "runs__main__iterations": 2}
    assert from_hub(**used).unpinned() == ["datasets.talks"]
    assert from_hub(**used, prompts__many__revision=several).unpinned() == ["datasets.talks", "prompts.many"]
    assert from_hub(**used, sft__tiny__base="llama", bases__llama__revision="main").unpinned() == [
        *("bases.llama", "datasets.talks")
    ]
    assert plan().unpinned() == []


def test_a_source_that_nothing_is_made_from_need_not_be_pinned():
    assert from_hub(prompts__many__revision=["main", "main"], bases__llama__revision="main").unpinned() == []


def test_what_is_sampled_by_an_engine():
    def by_vllm(config):
        config["samplings"]["evaluation"]["engine"] = "vllm"

    p = plan(by_vllm)
    assert p.samples_by("vllm", p.artifacts(*p.asked("all")))
    assert not p.samples_by("vllm", p.artifacts(*p.asked("iter3_policy")))
    assert p.samples_by("transformers", p.artifacts(*p.asked("iter3_policy")))


def told(p, stage, **wildcards):
    return json.loads(settings_of(p, stage, **wildcards))


def test_every_set_of_several_repositories_has_its_own_commit_and_is_its_whole_first_slice():
    p = from_hub()
    for n in (1, 2):
        source = {"repo": f"a/many-{n}", "revision": COMMITS[n - 1], "pattern": "*", "license": "unknown"}
        assert told(p, "fetch_data", block="prompts", source=f"many-{n}") == source
        made = told(p, "make_prompts", prompts=f"many-{n}")
        assert {key: made[key] for key in source} == source
        assert made["number"] == 1
        assert told(p, "make_prompts", prompts=f"one-{n}")["number"] == n
    with pytest.raises(ConfigError, match=r"names 2 revisions; there is none for SET-3\. Hint: "):
        told(p, "make_prompts", prompts="many-3")
    with pytest.raises(ConfigError, match=r"datasets\.annotations does not come from a hub\. Hint: "):
        told(p, "fetch_data", block="datasets", source="annotations")


def test_a_chat_template_of_ours_enters_by_its_bytes(tmp_path, monkeypatch):
    from scripts.lib.data import sources
    from scripts.lib.planning import checks

    for module in (sources, checks):
        monkeypatch.setattr(module, "TEMPLATES", tmp_path)
    template = tmp_path / "mine.jinja"
    template.write_text("one")

    def fetched():  # by a plan of its own: a plan reads a file once
        return told(from_hub(bases__llama__chat_template="mine.jinja"), "fetch_base", base="llama")

    before = fetched()
    template.write_text("two")
    after = fetched()
    assert {key for key in before if before[key] != after[key]} == {"chat_template_sha256"}
    assert told(from_hub(), "fetch_base", base="llama")["chat_template_sha256"] is None


def test_how_many_prompts_a_shard_has_changes_nothing_that_is_fetched_or_read():
    for stage, wildcards in (
        ("make_prompts", {"prompts": "one-1"}),
        ("fetch_data", {"block": "prompts", "source": "one"}),
    ):
        assert told(from_hub(prompts__one__shard_prompts=3), stage, **wildcards) == told(from_hub(), stage, **wildcards)


def test_a_source_without_files_is_refused_with_its_key(tmp_path):
    block = {"kind": "files", "type": "preferences", "path": str(tmp_path), "pattern": "*.jsonl"}
    (tmp_path / "rows.json").touch()
    with pytest.raises(
        ConfigError, match=r"datasets\.local\.path = .*no file there matches '\*\.jsonl'; it has rows\.json\. "
    ):
        settings_of(plan(put("datasets", "local", block)), "curate_data", dataset="local")


def test_planning_imports_neither_torch_nor_transformers_nor_snakemake():
    code = (
        "import sys; from pathlib import Path; from scripts.lib.planning import audit, config, explain, plan\n"
        "plan.Plan(config.load(Path('config/config.yaml'))).target('all')\n"
        "print(sorted({'torch', 'transformers', 'trl', 'snakemake', 'polars', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# Storage


def keeping(keep):
    return lambda config: config["runs"]["main"].update(keep=keep)


@pytest.mark.parametrize(
    ("keep", "kept"), [("all", {1, 2, 3}), ("last", {3}), ([1], {1}), ([3, 1], {1, 3}), ([], set())], ids=str
)
def test_the_iterations_whose_weights_a_run_keeps(keep, kept):
    assert prune_weights.kept_by(plan(keeping(keep)).config.runs["main"]) == kept


def test_keeping_fewer_weights_changes_no_settings():
    assert settings(plan(keeping("last"))) == settings(plan())


def test_the_readers_of_a_policys_weights_are_all_that_is_made_directly_from_them():
    p = plan()
    second = f"{T}/runs/main/iter2/rollouts"
    assert prune_weights.readers_of(p)[p.policy("runs/main/iter1")] == [
        f"{T}/runs/main/iter1/rollouts/best_of_8/requests-2/0.parquet",
        f"{T}/runs/main/iter1/rollouts/evaluation/heldout-1/0.parquet",
        f"{T}/runs/main/iter2/policy",
    ]
    assert (
        f"{second}/evaluation/heldout-1/logprobs/sft/tiny/0.parquet"
        in prune_weights.readers_of(p)[p.policy("sft/tiny")]
    )
    assert p.policy("runs/offline/iter1") in prune_weights.readers_of(p)[p.policy("sft/tiny")]


def test_the_previous_policy_as_reference_reads_the_weights_too():
    p = plan(lambda config: config["runs"]["main"].update(reference="previous"))
    reference = f"{SECOND}/pairs/bt/best_worst/reference/runs/main/iter1.parquet"
    assert reference in prune_weights.readers_of(p)[p.policy("runs/main/iter1")]


def test_weights_are_the_closure_with_the_folder_itself():
    p = plan()
    assert p.target("weights", 2) == [*p.target("policy", 2), p.policy("runs/main/iter2")]
    with pytest.raises(ConfigError, match="there is no iteration 4"):
        p.target("weights", 4)


def test_an_engine_that_is_not_the_trainers_is_checked_before_training_and_evaluation():
    sampled = put("samplings", "best_of_8", "engine", "vllm")
    checked = plan(sampled)
    assert checked.engine_checks("main", 2) == [
        "results/tiny/runs/main/iter1/rollouts/best_of_8/requests-2/engine.parquet"
    ]
    assert checked.engine_checks("main", 2)[0] in checked.inputs("results/tiny/runs/main/iter2/policy")
    assert checked.engine_checks("raft", 1)[0] in checked.inputs("results/tiny/runs/raft/iter1/policy")
    assert checked.engine_checks("offline", 1) == []
    assert checked.maker(checked.engine_checks("main", 1)[0])[0] == "check_engine"
    evaluated = plan(put("samplings", "evaluation", "engine", "vllm"))
    check = "results/tiny/runs/main/iter3/rollouts/evaluation/heldout-1/engine.parquet"
    assert check in evaluated.inputs("results/tiny/runs/main/iter3/eval/heldout.parquet")
    assert evaluated.engine_checks("main", 1) == []


def test_how_many_responses_are_checked_is_no_setting_where_it_changes_nothing():
    for name in ("best_of_8", "evaluation"):
        assert changed(put("samplings", name, "check_responses", 7)) == set()
