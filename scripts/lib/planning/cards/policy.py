"""Policies: one training step of a run, by DPO on pairs or by RAFT on the best responses."""

from collections.abc import Callable

from scripts.lib.kinds import runs as kinds
from scripts.lib.kinds.common import Block
from scripts.lib.kinds.config import Config
from scripts.lib.kinds.runs import TrainDpo, TrainRaft
from scripts.lib.planning import sizes
from scripts.lib.planning.card import Card, Compute, Inputs, Wildcards
from scripts.lib.planning.runs import Runs


def step(wildcards: Wildcards) -> tuple[str, int]:
    """(run, iteration) of a training step."""
    return wildcards["run"], int(wildcards["n"])


def dpo(plan: Runs, wildcards: Wildcards) -> kinds.Dpo:
    """The settings block of a DPO step."""
    return plan.run(*step(wildcards)).dpo


def raft(plan: Runs, wildcards: Wildcards) -> kinds.Raft:
    """The settings block of a RAFT step."""
    return plan.run(*step(wildcards)).raft


def dpo_settings(plan: Runs, wildcards: Wildcards) -> Block:
    """One DPO step; its tables stand here with their weights, in order: Snakemake would miss a swap of inputs."""
    where = step(wildcards)
    parts = [(plan.inside(part.pairs), part.weight) for part in plan.pair_sources(*where)]
    return TrainDpo(
        **plan.seeded(dpo(plan, wildcards)),
        start=plan.start(*where),
        reference=plan.reference(*where),
        sources=parts,
        dtype=plan.config.dtype,
    )


def dpo_inputs(plan: Runs, wildcards: Wildcards) -> Inputs:
    """The policy to start from, tables of pairs with their reference passes, and the checks of the engine."""
    where = step(wildcards)
    parts = plan.pair_sources(*where)
    return {
        "start": plan.policy(plan.start(*where)),
        "pairs": [part.pairs for part in parts],
        "reference": [part.reference for part in parts],
        "engine_checks": plan.engine_checks(*where),
    }


def raft_inputs(plan: Runs, wildcards: Wildcards) -> Inputs:
    """The policy to start from, rollouts and rewards to choose from, and the checks of the engine."""
    name, n = step(wildcards)
    iterations = plan.trained_on(name, n)
    return {
        "start": plan.policy(plan.start(name, n)),
        "rollouts": [path for i in iterations for path in plan.rollouts(*plan.sampled(name, i))],
        "rewards": [path for i in iterations for path in plan.rewards_of(name, i)],
        "engine_checks": plan.engine_checks(name, n),
    }


def longest(plan: Runs, wildcards: Wildcards) -> int:
    """The longest row of a step: what its samplings can give, and no more than it takes."""
    name, n = step(wildcards)
    run = plan.run(name, n)
    limit = run.trainer.max_length
    sampled = [sizes.room(plan, plan.sampled(name, i)[1]) for i in plan.trained_on(name, n)]
    return limit if run.mix or not sampled else min(limit, max(sampled))


def dpo_tokens(plan: Runs, wildcards: Wildcards) -> float | None:
    """Tokens of both sides of the pairs that a step trains on."""
    counts = [(sizes.pairs(plan, part.pairs), part.weight) for part in plan.pair_sources(*step(wildcards))]
    known = [count * weight for count, weight in counts if count is not None]
    total = sum(known) if len(known) == len(counts) else None
    return sizes.trained(plan, total, 2, longest(plan, wildcards), dpo(plan, wildcards).epochs)


def raft_tokens(plan: Runs, wildcards: Wildcards) -> float | None:
    """Tokens of the best responses, one to each prompt."""
    name, n = step(wildcards)
    rows = sum(sizes.prompts(plan, plan.sampled(name, i)[2]) for i in plan.trained_on(name, n))
    return sizes.trained(plan, rows, 1, longest(plan, wildcards), raft(plan, wildcards).epochs)


def starts_at_reference(plan: Runs, wildcards: Wildcards) -> bool:
    """Whether a step compares the policy with its reference before it trains."""
    return plan.start(*step(wildcards)) == plan.reference(*step(wildcards))


def start(plan: Runs, wildcards: Wildcards) -> str:
    """The policy that a step starts from."""
    return plan.start(*step(wildcards))


def by(method: str) -> Callable[[Config], dict[str, list[str]]]:
    """The runs that train by a method."""
    return lambda config: {"run": [name for name, run in config.runs.items() if run.method == method]}


OUTPUT = "runs/{run}/iter{n}/policy"
CARDS = (
    Card(
        name="train_dpo",
        output=OUTPUT,
        makes=by("dpo"),
        inputs=dpo_inputs,
        settings=dpo_settings,
        first=True,
        compute=Compute(
            kind="train",
            model=start,
            trainer=dpo,
            trainer_key=lambda wildcards: f"runs.{wildcards['run']}.dpo",
            longest=longest,
            tokens=dpo_tokens,
            sides=2,
            spreads=True,
            gated=starts_at_reference,
        ),
    ),
    Card(
        name="train_raft",
        output=OUTPUT,
        makes=by("raft"),
        inputs=raft_inputs,
        settings=lambda plan, wildcards: TrainRaft(**plan.seeded(raft(plan, wildcards)), dtype=plan.config.dtype),
        first=True,
        compute=Compute(
            kind="train",
            model=start,
            trainer=raft,
            trainer_key=lambda wildcards: f"runs.{wildcards['run']}.raft",
            longest=longest,
            tokens=raft_tokens,
            spreads=True,
        ),
    ),
)
