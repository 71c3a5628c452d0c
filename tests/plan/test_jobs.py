"""What the targets plan in a fresh checkout, against golden files; `pytest --fix` rewrites them."""

from pathlib import Path

import pytest

from tests.conftest import jobs, run

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
    done = run(checkout, "snakemake", "-n", "iter1_policy", "--config", "run=offline_1500")
    check(request, "tiny_offline_1500_iter1_policy", jobs(done.stdout))


def test_the_smollm2_preset_plans_these_jobs(checkout, request):
    folder = checkout / "data" / "hh_rlhf"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "helpful-base.test.jsonl").write_text('{"chosen": "", "rejected": ""}\n')
    preset = "config/presets/smollm2_135m_cpu.yaml"
    done = run(checkout, "snakemake", "-n", "--configfile", preset, "--", "all")
    check(request, "smollm2_135m_cpu_all", jobs(done.stdout))


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


@pytest.mark.parametrize("target", ["iter4_policy", "iter7_pairs", "iter0_rollouts"])
def test_an_iteration_beyond_the_configured_ones_is_refused_clearly(checkout, target):
    said = complaint(checkout, target)
    assert "run 'main' has iterations 1 to 3" in said
    assert "raise runs.main.iterations" in said


def test_an_offline_run_says_that_it_has_no_rollouts(checkout):
    said = complaint(checkout, "iter1_rollouts", "--config", "run=offline")
    assert "trains on curated preferences only" in said


def test_all_mistakes_of_a_config_are_told_before_anything_is_planned(checkout, tmp_path):
    overlay = tmp_path / "bad.yaml"
    overlay.write_text("runs: {main: {dpo: {betta: 0.2, epochs: -1}}}\nsamplings: {best_of_8: {k: none}}\n")
    said = complaint(checkout, "--configfile", str(overlay))
    assert "config: 3 errors" in said
    assert "runs.main.dpo.betta: unknown key. Hint: did you mean beta?" in said
    assert "runs.main.dpo.epochs = -1.0: must be greater than 0" in said
    assert "samplings.best_of_8.k = 'none': must be integer" in said
    assert "Traceback" not in said
