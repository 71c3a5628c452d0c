"""What `make plan` says of the jobs of a dry run, over made-up results."""

import copy
import shutil

import pytest

from scripts.lib.planning import config, explain
from scripts.lib.planning.explain import Causes, Cost, Planned
from scripts.lib.planning.plan import Plan
from scripts.lib.stage import artifact, digest

TINY = config.load(digest.ROOT / "config" / "config.yaml").model_dump()


def plan_at(root="results/tiny", change=lambda config: None):
    given = copy.deepcopy(TINY) | {"results": str(root)}
    change(given)
    return Plan(config.resolve(given))


def all_jobs(plan, *without):
    """Every job of `all`, or those of some rules only left out."""
    jobs = [Planned(plan.maker(path)[0], path) for path in plan.artifacts(*plan.asked("all"))]
    return [job for job in jobs if job.rule not in without]


@pytest.fixture(scope="module")
def original(tmp_path_factory, make_up):
    root = tmp_path_factory.mktemp("original") / "tiny"
    make_up(plan_at(root))
    return root


@pytest.fixture
def root(original, tmp_path):
    return shutil.copytree(original, tmp_path / "tiny")


# Snakemake's listing

LISTING = """\
Building DAG of jobs...
Job stats:
job          count
---------  -------
train_dpo        1

[Sun Nov 22 06:40:25 2026]
rule train_dpo:
    input: a/b.parquet, a/c.parquet
    output: a/policy, a/policy.sha256, a/policy.json
    log: a/policy.log
    jobid: 2
    reason: Params have changed since last execution:
        Before: output: nothing
        Now: {"beta": 0.2}
    wildcards: run=main, n=1
[Sun Nov 22 06:40:25 2026]
localrule make_base:
    output: a/model
    reason: Missing output files: a/model
[Sun Nov 22 06:40:25 2026]
localrule iter1_policy:
    input: a/policy.json
    jobid: 0
    reason: Rules with a run or shell declaration but no output are always executed.
Job stats:
    output: no job
"""


def test_a_dry_run_is_read_into_jobs_with_outputs():
    assert explain.planned(LISTING.replace("Job stats:\n    output: no job\n", "")) == [
        Planned("train_dpo", "a/policy", "Params have changed since last execution:"),
        Planned("make_base", "a/model", "Missing output files: a/model"),
    ]
    assert explain.planned("Building DAG of jobs...\nNothing to be done (all requested files are present).\n") == []


# The table


def test_jobs_are_counted_by_rule_and_policy():
    plan = plan_at()
    jobs = [Planned(plan.maker(path)[0], path) for path in plan.artifacts(*plan.asked("iter2_policy"))]
    assert explain.table(plan, jobs) == [
        "                   common     sft   iter1   iter2",
        "all runs",
        "  make_base             1",
        "  curate_data           3",
        "  train_sft                     1",
        "  make_prompts          2",
        "  sample_rollouts               1",
        "  train_reward          1",
        "  score_rollouts                1",
        "  build_pairs                   1",
        "  score_reference               1",
        "main",
        "  sample_rollouts                       1",
        "  score_rollouts                        1",
        "  build_pairs                           1",
        "  score_reference                       1",
        "  train_dpo                             1       1",
    ]


def test_runs_whose_jobs_look_alike_stand_together():
    plan = plan_at()
    jobs = [Planned("train_dpo", plan.policy(f"runs/{run}/iter1")) for run in ("main", "once", "offline")]
    jobs.append(Planned("train_raft", plan.policy("runs/raft/iter1")))
    jobs.append(Planned("train_dpo", plan.policy("runs/main/iter2")))
    assert explain.table(plan, jobs) == [
        "               iter1   iter2",
        "main",
        "  train_dpo        1       1",
        "once, offline: each",
        "  train_dpo        1",
        "raft",
        "  train_raft       1",
    ]


def test_every_job_of_all_stands_in_the_table_once():
    plan = plan_at()
    jobs = all_jobs(plan)
    lines = explain.table(plan, jobs)
    rows, times = [], 1
    for line in lines[1:]:
        if line.startswith("  "):
            rows += [int(cell) * times for cell in line.split()[1:]]
        else:
            times = line.count(",") + 1
    assert sum(rows) == len(jobs)


def test_columns_of_iterations_are_in_the_order_of_numbers():
    plan = plan_at(change=lambda c: c["runs"]["main"].update(iterations=10))
    jobs = [Planned("train_dpo", plan.policy(f"runs/main/iter{n}")) for n in range(1, 11)]
    assert explain.table(plan, jobs)[0].split() == [f"iter{n}" for n in range(1, 11)]


# Causes


def test_a_changed_beta_is_one_cause_and_the_rest_follows(root):
    plan = plan_at(root, lambda c: c["runs"]["main"]["dpo"].update(beta=0.2))
    jobs = [job for job in all_jobs(plan) if "/runs/main/" in job.artifact or job.rule == "build_report"]
    causes = explain.causes(plan, jobs)
    policies = [f"runs/main/iter{n}/policy" for n in (1, 2, 3)]
    assert causes == Causes({"dpo beta 0.1 -> 0.2": policies}, {}, len(jobs) - 3)
    assert explain.causes_in_words(causes) == [
        "runs/main/iter{1,2,3}/policy: dpo beta 0.1 -> 0.2",
        f"the rest follows from these: {len(jobs) - 3} jobs",
    ]


def test_what_is_not_made_yet_is_told_by_rule(tmp_path):
    plan = plan_at(tmp_path)
    causes = explain.causes(plan, all_jobs(plan))
    assert (causes.changed, causes.follow) == ({}, 0)
    assert causes.not_made["train_dpo"] == 5
    assert sum(causes.not_made.values()) == len(all_jobs(plan))
    assert explain.causes_in_words(Causes({}, {"train_dpo": 2, "train_raft": 1}, 0)) == [
        "not made yet: 2 train_dpo, 1 train_raft"
    ]


def test_a_job_without_a_difference_and_without_one_before_it_has_snakemakes_reason(root):
    plan = plan_at(root)
    jobs = [
        Planned("train_sft", plan.policy("sft/tiny"), "Forced execution"),
        Planned("train_reward", plan.reward_model("bt"), "Input files updated by another job: x"),
        Planned("elsewhere", "other/file", "Missing output files: other/file"),
    ]
    assert explain.causes(plan, jobs) == Causes(
        {
            "Snakemake says: Forced execution": ["sft/tiny/policy"],
            "Snakemake says: Missing output files: other/file": ["other/file"],
        },
        {},
        1,
    )


def test_what_differs_and_is_not_to_be_made_again_is_counted(root):
    plan = plan_at(root, lambda c: c["runs"]["main"]["dpo"].update(beta=0.2))
    said = " would stay although the plan differs: see `snakemake audit`"
    assert explain.overlooked(plan, plan.asked("iter3_policy"), []) == [f"3 artifacts{said}"]
    jobs = [Planned("train_dpo", plan.policy(f"runs/main/iter{n}")) for n in (1, 2)]
    assert explain.overlooked(plan, plan.asked("iter3_policy"), jobs) == [f"1 artifact{said}"]
    assert explain.overlooked(plan, plan.asked("iter2_policy"), jobs) == []


def test_names_that_differ_in_the_iteration_only_are_gathered():
    names = ["runs/a/iter1/policy", "sft/tiny/policy", "runs/a/iter12/policy", "runs/b/iter2/policy"]
    assert explain.gathered(names) == ["runs/a/iter{1,12}/policy", "sft/tiny/policy", "runs/b/iter2/policy"]


def test_long_lists_are_cut():
    assert explain.names_in_words(list("abcdefgh")) == "a, b, c, d, e, f, g, h"
    assert explain.names_in_words(list("abcdefghij")) == "a, b, c, d, e, f, g, h and 2 more"


# What is shared


def test_what_other_runs_use_is_told_with_their_names():
    plan = plan_at()
    made = [Planned("sample_rollouts", path) for path in plan.rollouts("sft/tiny", "best_of_8", "requests-1")]
    assert explain.shared(plan, plan.asked("iter1_policy"), made) == [
        "made now, and also used by raft: sft/tiny/rollouts/best_of_8/requests-1",
        "kept, and also used by once, offline, raft: base/world, data/demonstrations, sft/tiny, data/annotations,",
        "    data/annotations_heldout, reward/bt",
        "kept, and also used by raft: prompts/requests-1, sft/tiny/rollouts/best_of_8/requests-1/rewards/bt",
    ]


def test_targets_of_several_runs_tell_what_two_or_more_use():
    plan = plan_at()
    lines = explain.shared(plan, plan.asked("all"), [])
    assert lines[0].startswith("kept, and used by main, once, offline, raft: base/world, ")
    assert [line for line in lines if line.startswith("kept, and used by main, raft: prompts/requests-1, ")]
    assert not [line for line in lines if "runs/" in line]


def test_a_run_alone_shares_nothing():
    plan = plan_at(change=lambda c: c.update(runs={"main": c["runs"]["main"]}))
    assert explain.shared(plan, plan.asked("iter3_policy"), []) == []


# What it costs


def ran(root, name, **facts):
    artifact.write_json(root / f"{name}.run.json", facts)


def test_an_artifacts_own_last_run_counts_and_else_the_median_of_its_rule(tmp_path):
    plan = plan_at(tmp_path)
    for n, seconds in ((1, 10), (2, 20), (3, 60)):
        ran(tmp_path, f"runs/main/iter{n}/policy", seconds=seconds)
    jobs = [Planned("train_dpo", plan.policy(f"runs/{run}/iter1")) for run in ("main", "offline")]
    jobs.append(Planned("train_raft", plan.policy("runs/raft/iter1")))
    assert explain.cost(plan, plan.asked("all"), jobs) == Cost(30, 20, None, None, 1)


def test_jobs_that_wait_for_each_other_make_the_longest_chain(tmp_path):
    plan = plan_at(tmp_path)
    ran(tmp_path, "data/annotations", seconds=5)
    ran(tmp_path, "data/demonstrations", seconds=3)
    ran(tmp_path, "sft/tiny/policy", seconds=10)
    ran(tmp_path, "reward/bt/model", seconds=4)
    paths = [
        plan.dataset("annotations"),
        plan.dataset("demonstrations"),
        plan.policy("sft/tiny"),
        plan.reward_model("bt"),
    ]
    cost = explain.cost(plan, plan.asked("all"), [Planned(plan.maker(path)[0], path) for path in paths])
    assert (cost.seconds, cost.longest, cost.unknown) == (22, 17, 0)


def test_gpu_hours_and_bytes_are_summed_where_runs_tell_them(tmp_path):
    plan = plan_at(tmp_path)
    ran(tmp_path, "sft/tiny/policy", seconds=3600, gpus=2, bytes=5_000_000)
    ran(tmp_path, "reward/bt/model", seconds=1800)
    jobs = [Planned("train_sft", plan.policy("sft/tiny")), Planned("train_reward", plan.reward_model("bt"))]
    assert explain.cost(plan, [], jobs) == Cost(5400, 5400, 2, 5_000_000, 0)


@pytest.mark.parametrize("facts", ['{"seconds": null}', "{", "[]", '{"host": "x"}'])
def test_a_run_file_without_figures_is_no_history(tmp_path, facts):
    plan = plan_at(tmp_path)
    (tmp_path / "sft/tiny").mkdir(parents=True)
    (tmp_path / "sft/tiny/policy.run.json").write_text(facts)
    cost = explain.cost(plan, [], [Planned("train_sft", plan.policy("sft/tiny"))])
    assert cost == Cost(0, 0, None, None, 1)
    assert explain.cost_in_words(cost, 1) == "time: not known, nothing like it has run here yet"


def test_cost_in_words():
    assert explain.cost_in_words(Cost(200, 65, 1.5, 2_340_000, 3), 10) == (
        "time: 3 min 20 s of work as it went last, 1 min 5 s in the longest chain; 1.50 GPU-hours; 2.3 MB; "
        "without 3 jobs of which nothing is known"
    )
    assert explain.cost_in_words(Cost(7500, 45, None, None, 0), 4) == (
        "time: 2 h 5 min of work as it went last, 45 s in the longest chain"
    )
