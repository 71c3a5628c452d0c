"""Evaluation of every policy on held-out prompts, and the report over all of them."""

from scripts.lib.kinds.common import Block
from scripts.lib.kinds.evaluation import BuildReport, Evaluate
from scripts.lib.planning import paths
from scripts.lib.planning.card import Card, Inputs, Wildcards
from scripts.lib.planning.runs import Runs
from scripts.lib.report import templates


def inputs(plan: Runs, wildcards: Wildcards) -> Inputs:
    """The tables of one policy's evaluation; `logprobs` and `sft_rewards` compare it with its SFT policy.

    Where another engine than the trainer's library sampled, its check holds the trainer's log-probabilities of all
    responses, which the KL is computed from.
    """
    policy, benchmark = wildcards["policy"], wildcards["benchmark"]
    block, where, sft = plan.config.evaluation[benchmark], plan.evaluated(benchmark), plan.sft_of(policy)
    rest = [] if policy == sft else [sft]
    return {
        "rollouts": plan.rollouts(policy, *where),
        "rewards": [path for reward in block.rewards for path in plan.rewards(policy, *where, reward)],
        "logprobs": [path for other in rest for path in plan.logprobs(policy, *where, other)],
        "sft_rewards": [
            path for other in rest for reward in block.rewards for path in plan.rewards(other, *where, reward)
        ],
        "engine_checks": plan.engine_check(policy, *where),
    }


def settings(plan: Runs, wildcards: Wildcards) -> Block:
    """One policy on held-out prompts."""
    block = plan.config.evaluation[wildcards["benchmark"]]
    return Evaluate(**plan.seeded(block, "prompts", "sampling"))


def report_inputs(plan: Runs, wildcards: Wildcards) -> Inputs:
    """Every evaluation, and the manifests that the report takes its numbers from.

    Those of the evaluations, on-policy pair tables, checks of an engine, reward models, and policies.
    """
    steps = plan.steps()
    pairs = [plan.pairs_of(name, n) for name, n in steps if plan.config.runs[name].has_pairs]
    checks = [table for name, n in steps for table in plan.engine_checks(name, n)]
    for benchmark in plan.config.evaluation:
        where = plan.evaluated(benchmark)
        checks += [table for policy in plan.policies() for table in plan.engine_check(policy, *where)]
    used = plan.rewards_used()
    models = [path for name in plan.config.rewards if name in used for path in plan.labeller(name)]
    told = [*plan.evaluations(), *dict.fromkeys(pairs), *dict.fromkeys(checks), *models]
    told += [plan.policy(policy) for policy in plan.policies()]
    return {"evaluations": plan.evaluations(), "manifests": [paths.manifest(path) for path in told]}


def report_settings(plan: Runs, wildcards: Wildcards) -> Block:
    """The report. Runs stand longest first, then by name: the order of keys in a configuration means nothing."""
    runs = plan.config.runs
    names = sorted(runs, key=lambda name: (-runs[name].iterations, name))
    return BuildReport(
        preset=plan.config.preset,
        runs=[(name, runs[name].method, plan.policies([name])) for name in names],
        benchmarks={name: block.rewards for name, block in plan.config.evaluation.items()},
        templates=templates.digests(),
    )


CARDS = (
    Card(
        name="evaluate",
        output="{policy}/eval/{benchmark}.parquet",
        inputs=inputs,
        settings=settings,
        local=True,
    ),
    Card(
        name="build_report",
        output="report.html",
        inputs=report_inputs,
        settings=report_settings,
        local=True,
    ),
)
