"""`make plan` in a checkout in which nothing has been built."""

import re
import sys

from tests.conftest import ROOT, run


def show_plan(checkout, *arguments: str, check: bool = True):
    return run(checkout, sys.executable, "-m", "scripts.show_plan", *arguments, check=check)


def test_of_a_fresh_checkout_everything_is_not_made_yet(checkout):
    said = show_plan(checkout, "iter1_policy", "--config", "run=offline").stdout
    jobs = (ROOT / "tests/plan/golden/tiny_offline_iter1_policy.txt").read_text().splitlines()
    made = [job for job in jobs if " " in job]
    assert said.startswith(f"{len(made)} jobs would run, ")
    (line,) = [line for line in said.splitlines() if line.startswith("  not made yet: ")]
    counts = dict(part.split(" ")[::-1] for part in line.removeprefix("  not made yet: ").split(", "))
    assert counts == {rule: str(sum(job.split(" ")[0] == rule for job in made)) for rule in counts}
    assert set(counts) == {job.split(" ")[0] for job in made}
    assert said.endswith("\ntime: not known, nothing like it has run here yet\n")
    _, _, forecast = said.partition("\nforecast for the most demanding jobs:\n")
    lines = [line for line in forecast.splitlines() if re.match(r"  [a-z]", line)]
    assert {line.split(":")[0].strip() for line in lines} == {"make_base", "train_sft", "score_reference", "train_dpo"}
    assert all(re.search(r": [0-9.]+ [MG]iB \(libraries [0-9.]+, activations", line) for line in lines)


def test_what_cannot_fit_is_refused_with_what_would_help(checkout, tmp_path):
    overlay = tmp_path / "small.yaml"
    overlay.write_text("forecast: {device_memory_gib: 0.75}\n")
    done = show_plan(checkout, "all", "--configfile", str(overlay), check=False)
    assert done.returncode == 1
    assert "runtime.train_micro_batch = 32: train_dpo of runs/main/iter1/policy needs " in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_snakemakes_complaints_and_its_exit_code_are_passed_on(checkout, tmp_path):
    overlay = tmp_path / "bad.yaml"
    overlay.write_text("runs: {main: {dpo: {betta: 1}}}\n")
    done = show_plan(checkout, "all", "--configfile", str(overlay), check=False)
    assert done.returncode == 1
    assert "runs.main.dpo.betta: unknown key. Hint: did you mean beta?" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_a_quiet_dry_run_is_refused(checkout):
    done = show_plan(checkout, "sft", "--quiet", "all", check=False)
    assert done.returncode == 2
    assert done.stderr == "--quiet: a quiet dry run does not name its jobs.\nHint: leave the option out.\n"


def test_make_plan_passes_target_files_and_keys(checkout):
    given = ["TARGET=iter3_policy", "CONFIGFILE=a.yaml b.yaml", "CONFIG=run=raft"]
    said = run(checkout, "make", "--no-print-directory", "-n", "-o", ".venv/ready", "plan", *given).stdout.replace(
        "\\\n", " "
    )
    assert " ".join(said.split()).endswith(
        "python -m scripts.show_plan iter3_policy --configfile a.yaml b.yaml --config run=raft"
    )
    said = run(checkout, "make", "--no-print-directory", "-n", "-o", ".venv/ready", "plan").stdout.replace("\\\n", " ")
    assert " ".join(said.split()).endswith("python -m scripts.show_plan all")
