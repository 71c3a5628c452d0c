"""`make plan` and `snakemake audit` on a finished build."""

import shutil

import pytest

from tests.conftest import ROOT, jobs, run

pytestmark = pytest.mark.build
EVERY = len((ROOT / "tests/plan/golden/tiny_all.txt").read_text().splitlines()) - 1  # jobs of `all` but itself
BETA = "runs: {main: {dpo: {beta: 0.2}}}\n"


def plan(build, *arguments: str):
    return run(build, "python", "-m", "scripts.show_plan", *arguments)


def overlay(tmp_path, text: str) -> str:
    file = tmp_path / "overlay.yaml"
    file.write_text(text)
    return str(file)


@pytest.mark.parametrize("arguments", [["all"], ["iter3_policy"], ["iter1_policy", "--config", "run=raft"]])
def test_without_a_change_nothing_would_run(build, arguments):
    assert plan(build, *arguments).stdout == "Nothing would run.\n"


def test_another_beta_is_the_first_cause_of_what_follows(build, tmp_path):
    said = plan(build, "iter3_policy", "--configfile", overlay(tmp_path, BETA)).stdout.splitlines()
    assert said[:2] == ["11 jobs would run, grouped by policy:", ""]
    assert [line.split() for line in said[2:9]] == [
        ["iter1", "iter2", "iter3"],
        ["main"],
        ["sample_rollouts", "1", "1"],
        ["score_rollouts", "1", "1"],
        ["build_pairs", "1", "1"],
        ["score_reference", "1", "1"],
        ["train_dpo", "1", "1", "1"],
    ]
    assert said[9:14] == [
        "",
        "why:",
        "  runs/main/iter{1,2,3}/policy: dpo beta 0.1 -> 0.2",
        "  the rest follows from these: 8 jobs",
        "",
    ]
    forecast = said.index("forecast for the most demanding jobs:")
    rules = {line.split(":")[0].strip() for line in said[forecast + 1 : -2] if line[2] != " "}
    assert rules == {"sample_rollouts", "score_rollouts", "score_reference", "train_dpo"}
    title, *lost, blank = said[14 : said.index("shared:")]
    assert (title, blank) == ("asks first, because work is lost:", "")
    assert [line.split(", ")[0] for line in lost] == [f"  replaces: runs/main/iter{n}/policy" for n in (1, 2, 3)]
    assert [*said[said.index("shared:") : forecast], said[-1]] == [
        "shared:",
        "  kept, and also used by once, offline, raft: base/world, data/demonstrations, sft/tiny, data/annotations,",
        "      data/annotations_heldout, reward/bt",
        "  kept, and also used by raft: prompts/requests-1, sft/tiny/rollouts/best_of_8/requests-1,",
        "      sft/tiny/rollouts/best_of_8/requests-1/rewards/bt",
        "",
        said[-1],
    ]
    assert said[-1].startswith("time: ")
    assert "nothing is known" not in said[-1]


def test_the_jobs_are_those_of_snakemakes_dry_run(build, tmp_path):
    file = overlay(tmp_path, BETA)
    planned = [job for job in jobs(run(build, "snakemake", "-n", "all", "--configfile", file).stdout) if " " in job]
    said = plan(build, "all", "--configfile", file).stdout
    assert said.startswith(f"{len(planned)} jobs would run, ")
    assert f"the rest follows from these: {len(planned) - 3} jobs\n" in said


def test_the_last_of_several_overlays_wins_and_numbers_are_typed(build, tmp_path):
    (tmp_path / "second.yaml").write_text("runs: {main: {dpo: {beta: 1e-1}}}\n")
    files = [overlay(tmp_path, BETA), str(tmp_path / "second.yaml")]
    assert plan(build, "iter3_policy", "--configfile", *files).stdout == "Nothing would run.\n"


def test_a_changed_helper_is_named(scratch_build):
    helper = scratch_build / "scripts/lib/data/responses.py"
    helper.write_text(helper.read_text() + "\nMORE = 1\n")
    said = plan(scratch_build, "iter1_pairs").stdout
    assert "  sft/tiny/rollouts/best_of_8/requests-1/pairs/bt/best_worst: code: data.responses changed\n" in said
    assert said.startswith("1 job would run, ")


def test_a_removed_table_is_not_made_yet_and_its_readers_follow(scratch_build):
    for file in scratch_build.glob("results/tiny/sft/tiny/rollouts/best_of_8/requests-1/pairs/bt/best_worst.*"):
        file.unlink()
    said = plan(scratch_build, "iter1_policy").stdout
    assert "  not made yet: 1 build_pairs\n  the rest follows from these: 2 jobs\n" in said


# The audit


def test_the_finished_build_agrees_with_the_plan(build):
    assert f"{EVERY} artifacts agree with the plan\n" in run(build, "snakemake", "audit").stdout


def test_the_audit_is_no_part_of_all(build):
    assert jobs(run(build, "snakemake", "-n", "all", "audit").stdout) == ["audit"]


def test_the_audit_tells_what_snakemake_has_forgotten(scratch_build, tmp_path):
    """Without its records Snakemake trusts what is there; the manifests still know."""
    shutil.rmtree(scratch_build / ".snakemake")
    file = overlay(tmp_path, BETA)
    assert jobs(run(scratch_build, "snakemake", "-n", "iter3_policy", "--configfile", file).stdout) == []
    assert plan(scratch_build, "iter3_policy", "--configfile", file).stdout == (
        "Nothing would run.\n3 artifacts would stay although the plan differs: see `snakemake audit`\n"
    )
    done = run(scratch_build, "snakemake", "audit", "--configfile", file, check=False)
    assert done.returncode != 0
    lines = done.stdout.splitlines()
    told = [f"results/tiny/runs/main/iter{n}/policy: dpo beta 0.1 -> 0.2" for n in (1, 2, 3)]
    first = lines.index(told[0])
    assert lines[first : first + 4] == [*told, f"3 of {EVERY} artifacts differ from the plan"]
    assert lines[first + 4].startswith("Hint: ")
    for n in (1, 2, 3):
        (scratch_build / f"results/tiny/runs/main/iter{n}/policy.json").unlink()
    planned = jobs(run(scratch_build, "snakemake", "-n", "iter3_policy", "--configfile", file).stdout)
    assert [job for job in planned if job.startswith("train_dpo")] == [
        f"train_dpo results/tiny/runs/main/iter{n}/policy" for n in (1, 2, 3)
    ]
