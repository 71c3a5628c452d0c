"""Lineage, verification, pruning and phases on the finished build."""

import re

import pytest

from tests.conftest import jobs, run

pytestmark = pytest.mark.build
T = "results/tiny"
FREED = ["runs/main/iter1/policy", "runs/main/iter2/policy"]
KEEP_LAST = "runs: {main: {keep: last}}\n"


def test_the_lineage_of_the_last_iteration_reaches_data_prompts_and_base(build):
    said = run(build, "python", "-m", "scripts.lineage", f"{T}/runs/main/iter3/policy").stdout
    lines = [line.lstrip("│ ├└─") for line in said.splitlines()]
    found = {line.split("  ")[0]: line.split("  ")[1].split(":")[0] for line in lines if not line.endswith("(above)")}
    places = ["sft/tiny", "runs/main/iter1", "runs/main/iter2"]
    expected = {
        "base/world/model": "make_base",
        "data/annotations.parquet": "curate_data",
        "data/annotations_heldout.parquet": "curate_data",
        "data/demonstrations.parquet": "curate_data",
        "reward/bt/model": "train_reward",
        "sft/tiny/policy": "train_sft",
    }
    for n, place in enumerate(places, 1):
        rollouts = f"{place}/rollouts/best_of_8/requests-{n}"
        expected |= {
            f"prompts/requests-{n}.parquet": "make_prompts",
            f"{rollouts}/0.parquet": "sample_rollouts",
            f"{rollouts}/rewards/bt/0.parquet": "score_rollouts",
            f"{rollouts}/pairs/bt/best_worst.parquet": "build_pairs",
            f"{rollouts}/pairs/bt/best_worst/reference/sft/tiny.parquet": "score_reference",
            f"runs/main/iter{n}/policy": "train_dpo",
        }
    assert found == expected
    assert "CHANGED SINCE" not in said


def verified(folder) -> tuple[int, str]:
    done = run(folder, "python", "-m", "scripts.verify_results", "--results", T, check=False)
    return done.returncode, done.stdout


def test_verify_finds_no_damage(build):
    done = run(build, "snakemake", "verify")
    assert re.search(rf"{T}: \d+ artifacts, 0 of them pruned weights, [\d.]+ MB: no problems", done.stdout)


def test_verify_names_damaged_weights_tables_and_manifests(scratch_build):
    root = scratch_build / T
    weights = root / "runs/main/iter1/policy/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0\1")
    table = root / "data/annotations.parquet"
    table.write_bytes(table.read_bytes()[:-1])
    (root / "prompts/requests-1.json").write_text("{")
    done = run(scratch_build, "snakemake", "verify", check=False)
    assert done.returncode != 0
    assert re.findall(r"^  - (\S+): ", done.stdout, re.MULTILINE) == [
        f"{T}/data/annotations.parquet",
        f"{T}/prompts/requests-1.json",
        f"{T}/runs/main/iter1/policy/model.safetensors",
    ]
    assert "3 problems" in done.stdout


def snapshot(root) -> dict[str, bytes]:
    """Every file of the results but logs and weights."""
    files = [path for path in root.rglob("*") if path.is_file() and path.parent.name not in ("policy", "model")]
    return {str(path.relative_to(root)): path.read_bytes() for path in files if "logs" not in path.parts}


@pytest.fixture
def pruned(scratch_build):
    """A build whose run main keeps its last weights only; before and after, everything else is the same."""
    (scratch_build / "last.yaml").write_text(KEEP_LAST)
    before = snapshot(scratch_build / T)
    said = run(scratch_build, "snakemake", "prune", "--configfile", "last.yaml").stdout
    assert re.findall(r"^(freed|kept|left|gone) +runs/main/(\S+):", said, re.MULTILINE) == [
        ("freed", "iter1"),
        ("freed", "iter2"),
        ("kept", "iter3"),
    ]
    assert snapshot(scratch_build / T) == before
    assert [(scratch_build / T / folder).exists() for folder in FREED] == [False, False]
    return scratch_build


def planned(folder, target: str, *options: str) -> list[str]:
    return jobs(run(folder, "snakemake", "-n", *options, "--", target).stdout)


def test_after_pruning_nothing_is_planned_and_nothing_is_damaged(pruned):
    for target in ("all", "iter1_policy", "iter3_policy", "evaluation", "report"):
        assert planned(pruned, target) == []
    code, said = verified(pruned)
    assert code == 0
    assert "2 of them pruned weights" in said


def made(said: str) -> list[tuple[str, str]]:
    """(stage, artifact) of every stage that ran, from the line that each prints at its end."""
    return re.findall(rf"^(\w+) ({T}/\S+): ", said, re.MULTILINE)


def test_a_new_benchmark_plans_the_training_of_pruned_weights(pruned):
    (pruned / "new.yaml").write_text(
        "evaluation: {again: {prompts: heldout, sampling: again, rewards: [gold]}}\n"
        "samplings: {again: {k: 2, max_prompt_tokens: 64, max_new_tokens: 32, record_logprobs: true}}\n"
    )
    found = planned(pruned, f"{T}/runs/main/iter2/eval/again.parquet", "--configfile", "new.yaml")
    assert f"train_dpo {T}/runs/main/iter2/policy" in found
    kept = planned(pruned, f"{T}/runs/raft/iter1/eval/again.parquet", "--configfile", "new.yaml")
    assert not [job for job in kept if job.startswith("train")]


def test_one_invocation_makes_what_lies_between_two_pruned_iterations_again_and_a_phase_does_not(pruned):
    def counts(target: str) -> dict[str, int]:
        rules = [job.split()[0] for job in planned(pruned, target)]
        return {rule: rules.count(rule) for rule in rules}

    assert counts("iter1_weights") == {"train_dpo": 1, "iter1_weights": 1}
    between = dict.fromkeys(("sample_rollouts", "score_rollouts", "build_pairs", "score_reference"), 2)
    assert counts("weights") == {"train_dpo": 3, **between, "weights": 1}


@pytest.mark.long
def test_pruned_weights_are_made_again_with_the_same_bytes_and_nothing_else_is(pruned):
    before = snapshot(pruned / T)
    said = run(pruned, "python", "-m", "scripts.build_in_phases", "weights").stdout
    assert made(said) == [("train_dpo", f"{T}/{folder}") for folder in FREED]
    after = snapshot(pruned / T)
    volatile = {name for name in after if name.endswith((".run.json", ".tsv"))}
    assert {name for name in after if name not in volatile and after[name] != before[name]} == set()
    assert verified(pruned)[0] == 0
    assert planned(pruned, "all") == []


@pytest.mark.long
def test_a_phase_that_makes_the_same_bytes_sends_nothing_running(scratch_build):
    """The report reads manifests, which name the code; so it alone is made again beside the step itself."""
    script = scratch_build / "scripts" / "train_sft.py"
    script.write_text(script.read_text() + "\nUNUSED = 1\n")
    assert f"train_dpo {T}/runs/main/iter1/policy" in planned(scratch_build, "all")
    said = run(scratch_build, "python", "-m", "scripts.build_in_phases", "all").stdout
    assert made(said) == [("train_sft", f"{T}/sft/tiny/policy"), ("build_report", f"{T}/report")]
