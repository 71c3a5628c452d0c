"""What a finished build does next: nothing, or exactly what a change asks for."""

import base64

import pytest

from tests.conftest import jobs, run
from tests.finished.test_kill import digests

pytestmark = pytest.mark.build


def test_a_second_run_does_nothing(build):
    assert "Nothing to be done" in run(build, "snakemake", "all").stdout + run(build, "snakemake", "all").stderr


@pytest.mark.parametrize("target", ["sft", "reward", "iter3_policy", "iter2_pairs", "evaluation", "report"])
def test_named_targets_have_nothing_to_do(build, target):
    assert jobs(run(build, "snakemake", "-n", target).stdout) == []


@pytest.mark.parametrize("name", ["offline", "raft"])
def test_switching_the_run_invalidates_nothing(build, name):
    assert jobs(run(build, "snakemake", "-n", "all", "--config", f"run={name}").stdout) == []
    assert jobs(run(build, "snakemake", "-n", "iter1_policy", "--config", f"run={name}").stdout) == []


def planned(build, tmp_path, overlay: str, target: str = "all") -> list[str]:
    file = tmp_path / "overlay.yaml"
    file.write_text(overlay)
    return jobs(run(build, "snakemake", "-n", "--configfile", str(file), "--", target).stdout)


def test_beta_of_one_run_replans_its_dpo_and_what_follows_and_nothing_else(build, tmp_path):
    found = planned(build, tmp_path, "runs: {main: {dpo: {beta: 0.2}}}")
    own = [job for job in found if "results/tiny/runs/main/" in job]
    assert [job for job in found if job not in own] == ["all", "build_report results/tiny/report.html"]
    assert [job for job in own if job.startswith("train_dpo")] == [
        f"train_dpo results/tiny/runs/main/iter{n}/policy" for n in (1, 2, 3)
    ]
    assert not [job for job in own if "iter3/rollouts/best_of_8" in job]


def test_runtime_keys_replan_nothing(build, tmp_path):
    assert planned(build, tmp_path, "runtime: {train_micro_batch: 16, generate_batch: 64, score_tokens: 999}") == []


def test_a_new_iteration_replans_only_itself(build, tmp_path):
    found = planned(build, tmp_path, "runs: {main: {iterations: 4}}", "iter4_policy")
    assert found == [
        "build_pairs results/tiny/runs/main/iter3/rollouts/best_of_8/requests-4/pairs/bt/best_worst.parquet",
        "iter4_policy",
        "make_prompts results/tiny/prompts/requests-4.parquet",
        "sample_rollouts results/tiny/runs/main/iter3/rollouts/best_of_8/requests-4/0.parquet",
        "score_reference results/tiny/runs/main/iter3/rollouts/best_of_8/requests-4/pairs/bt/best_worst/reference/"
        "sft/tiny.parquet",
        "score_rollouts results/tiny/runs/main/iter3/rollouts/best_of_8/requests-4/rewards/bt/0.parquet",
        "train_dpo results/tiny/runs/main/iter4/policy",
    ]


@pytest.mark.long
def test_the_whole_build_made_again_gives_the_same_bytes(build, checkout):
    run(checkout, "snakemake", "all")
    assert digests(checkout) == digests(build)


def test_damaged_weights_are_not_trained_on(scratch_build, tmp_path):
    weights = scratch_build / "results/tiny/sft/tiny/policy/model.safetensors"
    weights.chmod(0o644)
    weights.write_bytes(weights.read_bytes()[:-100])
    for shard in scratch_build.glob("results/tiny/sft/tiny/rollouts/evaluation/heldout-1/0.*"):
        shard.unlink()
    done = run(scratch_build, "snakemake", "evaluation", check=False)
    assert done.returncode != 0
    assert "model.safetensors: sha256 is" in done.stdout


def test_snakemakes_own_report_holds_ours(build, tmp_path):
    page = tmp_path / "report.html"
    run(build, "snakemake", "--report", str(page), "--", "all")
    ours = (build / "results/tiny/report.html").read_bytes()
    assert base64.b64encode(ours).decode() in page.read_text()
