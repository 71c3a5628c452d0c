"""What the targets plan in a fresh checkout, against golden files; `pytest --fix` rewrites them."""

import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest

from scripts.lib.planning import cluster
from tests.conftest import copy_checkout, jobs, planned_jobs, run
from tests.plan.conftest import PRESETS
from tests.unit.test_cluster import Resources, options

GOLDEN = Path(__file__).parent / "golden"
TARGETS = ["all", "sft", "reward", "iter1_rollouts", "iter1_rewards", "iter2_pairs", "iter3_policy", "evaluation"]


def check(request, name: str, planned: list[str]) -> None:
    golden = GOLDEN / f"{name}.txt"
    if request.config.getoption("--fix"):
        golden.parent.mkdir(exist_ok=True)
        golden.write_text("".join(f"{job}\n" for job in planned))
    assert planned == golden.read_text().splitlines()


@pytest.mark.parametrize("target", TARGETS)
def test_the_tiny_preset_plans_these_jobs(checkout, request, target):
    check(request, f"tiny_{target}", jobs(run(checkout, "snakemake", "-n", target).stdout))


def test_another_run_is_chosen_on_the_command_line(checkout, request):
    done = run(checkout, "snakemake", "-n", "iter1_policy", "--config", "run=offline")
    check(request, "tiny_offline_iter1_policy", jobs(done.stdout))


@pytest.mark.parametrize("preset", [name for name in PRESETS if name != "tiny"])
def test_a_preset_plans_these_jobs(dry_run, request, preset):
    done = dry_run(preset, "none")
    check(request, f"{preset}_all", jobs(done.stdout))
    assert (done.stderr.count("not pinned to a commit: ") == 1) == (preset in ("llama3_8b", "llama3_8b_concise"))


@pytest.mark.parametrize("preset", [name for name in PRESETS if name.startswith(("llama3", "qwen"))])
def test_a_preset_of_8b_submits_these_jobs_to_slurm(dry_run, request, preset):
    """Two lines for each step that becomes a SLURM job: what the plugin tells sbatch, and what starts the processes.

    All jobs of a step say the same. A dry run does not tell which steps are local; test_wiring.py does.
    """
    planned = [job for job in planned_jobs(dry_run(preset, "slurm").stdout) if job["rule"] in cluster.submitted()]
    steps = {as_submitted(job) for job in planned}
    check(request, f"{preset}_slurm", [line for step in sorted(steps) for line in step])


def as_submitted(job: dict) -> tuple[str, str]:
    """The two lines of a job, from the resources and the shell command that Snakemake plans."""
    from snakemake_executor_plugin_slurm import Executor

    asked = {name: int(value) if value.isdigit() else value for name, value in job["resources"].items()}
    partition = Executor.get_partition_arg(
        SimpleNamespace(_partitions=None), SimpleNamespace(resources=Resources(asked))
    )
    words = shlex.split(job["shell"])
    launch = words[: words.index(f"scripts.{job['rule']}")]
    return f"{job['rule']}:{partition} {' '.join(options(asked, job['threads']))}", f"    {shlex.join(launch)}"


def complaint(checkout, *arguments: str) -> str:
    done = run(checkout, "snakemake", "-n", *arguments, check=False)
    assert done.returncode != 0
    return done.stdout + done.stderr


def test_a_missing_data_folder_is_named_with_its_key(checkout, tmp_path):
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("datasets: {demonstrations: {path: no/such/folder}}\n")
    said = complaint(checkout, "--configfile", "config/presets/smollm2_135m_cpu.yaml", str(overlay), "--", "sft")
    assert "datasets.demonstrations.path = 'no/such/folder'" in said
    assert "Hint:" in said


def test_targets_that_the_run_does_not_have_are_refused_clearly_and_together(checkout):
    said = complaint(checkout, "iter1_rollouts", "iter4_policy", "--config", "run=offline")
    assert "target iter1_rollouts: run 'offline' trains on curated preferences only" in said
    assert "target iter4_policy: run 'offline' has iterations 1 to 1" in said


def test_without_an_environment_for_vllm_a_build_is_refused_before_its_first_job_and_a_dry_run_says_so(tmp_path):
    folder = copy_checkout(tmp_path / "ouroboros")
    (folder / "vllm.yaml").write_text(
        "samplings: {best_of_8: {engine: vllm}}\nruntime: {rollout_python: no/such/python}\n"
    )
    lacking = "runtime.rollout_python = 'no/such/python': no program that can be run. Hint: `make rollout-env` makes"
    planned = run(folder, "snakemake", "-n", "iter1_rollouts", "--configfile", "vllm.yaml")
    assert planned.stderr.count(f"not ready for all steps: {lacking}") == 1
    refused = run(folder, "snakemake", "iter1_rollouts", "--configfile", "vllm.yaml", check=False)
    assert refused.returncode == 1
    assert f"not ready to run:\n  - {lacking}" in refused.stdout + refused.stderr
    assert not (folder / "results").exists()
    # What computes nothing, or needs no sampling, is done all the same.
    run(folder, "snakemake", "--touch", "iter1_rollouts", "--configfile", "vllm.yaml")
    table = "results/tiny/prompts/heldout-1.parquet"
    run(folder, "snakemake", table, "--configfile", "vllm.yaml")
    assert (folder / table).exists()


def test_all_mistakes_of_a_config_are_told_before_anything_is_planned(checkout, tmp_path):
    overlay = tmp_path / "bad.yaml"
    overlay.write_text("runs: {main: {dpo: {betta: 0.2, epochs: -1}}}\nsamplings: {best_of_8: {k: none}}\n")
    said = complaint(checkout, "--configfile", str(overlay))
    assert "config: 3 errors" in said
    assert "runs.main.dpo.betta: unknown key. Hint: did you mean beta?" in said
    assert "runs.main.dpo.epochs = -1: must be greater than 0" in said
    assert "samplings.best_of_8.k = 'none': must be integer" in said
    assert "Traceback" not in said
