"""A step that fails after its settings changed is planned again, with all that lies below it, by every target.

Snakemake records a job's new settings before the job runs, so a plan that only compared settings would take the
old results downstream for good. What saves them is that a target names every file beneath it.
"""

import shutil
from pathlib import Path

import pytest

from tests.rebuild.graph import (
    BASE,
    EVERYTHING,
    POLICIES,
    REPORT,
    SFT,
    TARGETS,
    below,
    data,
    dpo,
    evaluate,
    logprobs,
    pairs,
    prompts,
    raft,
    reference,
    reward,
    sample,
    score,
    select,
    verify,
)  # fmt: skip

STRATEGY = "pairings: {best_worst: {strategy: max_max}}"
EVALUATION = "samplings: {evaluation: {k: 8}}"
# What is changed, and the job that fails.
FAILURES = {
    "make_base": ("bases: {world: {learning_rate: 1e-3}}", BASE),
    "curate_data": ("datasets: {demonstrations: {size: 1900}}", data("demonstrations")),
    "make_prompts": ("prompts: {requests: {size: 400}}", prompts("requests-1")),
    "train_sft": ("sft: {tiny: {learning_rate: 5e-4}}", POLICIES[SFT]),
    "train_reward": ("rewards: {bt: {learning_rate: 5e-4}}", reward()),
    "sample_rollouts": ("samplings: {best_of_8: {k: 4}}", sample(SFT, 1)),
    "score_rollouts": ("rewards: {bt: {learning_rate: 5e-4}}", score(SFT, 1)),
    "verify_rollouts": (EVALUATION, verify("runs/main/iter2")),
    "score_logprobs": (EVALUATION, logprobs("runs/main/iter3")),
    "build_pairs": (STRATEGY, pairs("runs/main/iter1", 2)),
    "select_pairs": ("pairings: {as_given: {size: 900}}", select("as_given")),
    "score_reference": (STRATEGY, reference(SFT, 1)),
    "train_dpo": ("runs: {main: {dpo: {beta: 0.2}}}", dpo("main", 1)),
    "train_dpo in iteration 3": ("runs: {main: {dpo: {beta: 0.2}}}", dpo("main", 3)),
    "train_raft": ("runs: {raft: {raft: {learning_rate: 1e-4}}}", raft(1)),
    "evaluate": ("evaluation: {heldout: {confidence: 0.9}}", evaluate("runs/main/iter1")),
    "build_report": ("evaluation: {heldout: {confidence: 0.9}}", REPORT),
}


def test_every_rule_is_made_to_fail():
    assert {job.split()[0] for _, job in FAILURES.values()} == {job.split()[0] for job in EVERYTHING - {"all"}}


@pytest.fixture(scope="session")
def replanned(builds, side_by_side):
    """What each target plans after a failure; the other jobs that the change asks for were done."""

    def fail(name: str) -> dict[str, set[str]]:
        overlay, failing = FAILURES[name]
        checkout = builds.copy()
        output = failing.split()[1]
        code, said = builds.snakemake(checkout, "all", options=("--keep-going",), overlay=overlay, STANDIN_FAIL=output)
        assert code != 0
        assert f"{failing.split()[0]}: the stand-in was told to fail" in said
        found = {target: builds.plan(checkout, target, overlay=overlay) for target in TARGETS}
        shutil.rmtree(checkout)
        return found

    return side_by_side(fail, "failure")


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failed_step_and_all_below_it_are_planned_again_by_every_target(replanned, failure):
    left = below(FAILURES[failure][1]) - {"all"}
    wanted = {target: left & jobs for target, jobs in TARGETS.items()}
    assert replanned[failure].result() == {
        target: {*jobs, target} if jobs else set() for target, jobs in wanted.items()
    }


@pytest.mark.parametrize("quiet", [(), ("--quiet",), ("--quiet", "all")])
def test_the_end_of_the_log_is_at_the_terminal(builds, quiet):
    overlay, failing = FAILURES["evaluate"]
    checkout = builds.copy()
    code, said = builds.snakemake(checkout, "all", options=quiet, overlay=overlay, STANDIN_FAIL=failing.split()[1])
    assert code != 0
    log = "results/tiny/logs/runs/main/iter1/eval/heldout.log"
    assert f"evaluate failed; the end of {log}:\n    # python -m scripts.evaluate " in said
    assert said.rstrip().splitlines().count("    evaluate: the stand-in was told to fail") == 1
    shutil.rmtree(checkout)


def test_what_is_refused_is_told_once_whatever_is_quiet(builds):
    for quiet in ("--quiet", "--quiet=all", "-n --quiet=all"):
        words = tuple(quiet.split())
        for targets, overlay, told in (
            (("zzz",), "", "target zzz: there is none of this name"),
            (("sft",), "seed: -1", "seed = -1: must be at least 0"),
        ):
            code, said = builds.snakemake(builds.made, *targets, options=words, overlay=overlay)
            assert (code, said.count(told)) == (1, 1), said
        if "-n" not in words:
            code, said = builds.snakemake(builds.made, "sft", options=words, overlay="seed: 3", replace=False)
            assert (code, said.count("nothing was started")) == (1, 1), said


def test_logs_that_cannot_be_written_are_refused_before_any_output_is_deleted(builds):
    checkout = builds.copy()
    logs, evaluation = checkout / "results/tiny/logs", checkout / "results/tiny/runs/main/iter1/eval/heldout.parquet"
    shutil.rmtree(logs)
    logs.touch()
    for options in ((), ("-n",)):
        code, said = builds.snakemake(checkout, "all", options=options, overlay=FAILURES["evaluate"][0])
        assert code != 0
        assert f"results: 1 error\n  - results = '{Path('results/tiny/logs')}': is no folder. Hint: " in said
        assert "Traceback" not in said
    assert evaluation.exists()
    shutil.rmtree(checkout)
