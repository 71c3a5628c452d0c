"""Preference pairs: best against worst of a policy's own responses, or curated ones, and their reference pass."""

from scripts.lib.kinds.common import Block
from scripts.lib.kinds.pairing import BuildPairs, ScoreReference, SelectPairs
from scripts.lib.planning import sizes
from scripts.lib.planning.card import Card, Compute, Inputs, Wildcards
from scripts.lib.planning.cards.rollouts import FOLDER, place
from scripts.lib.planning.runs import Runs


def build_inputs(plan: Runs, wildcards: Wildcards) -> Inputs:
    """All shards of the responses and of their rewards."""
    where = place(wildcards)
    return {"rollouts": plan.rollouts(*where), "rewards": plan.rewards(*where, wildcards["reward"])}


def build_settings(plan: Runs, wildcards: Wildcards) -> Block:
    """Pairs of a policy's own responses."""
    return BuildPairs(**plan.seeded(plan.config.pairings[wildcards["pairing"]]))


def select_settings(plan: Runs, wildcards: Wildcards) -> Block:
    """Curated pairs."""
    block = plan.config.pairings[wildcards["pairing"]]
    return SelectPairs(size=block.size, minimum_margin=block.minimum_margin)


def pairs(plan: Runs, wildcards: Wildcards) -> str:
    """The table that a reference pass is over."""
    return f"{plan.root}/{wildcards['tail']}.parquet"


def reference_settings(plan: Runs, wildcards: Wildcards) -> Block:
    """Reference log-probabilities; a run that trains on 4-bit weights has its reference in 4 bits too."""
    return ScoreReference(dtype=plan.config.dtype, quantization="nf4" if wildcards["quantized"] else None)


def longest(plan: Runs, wildcards: Wildcards) -> int:
    """The longest pair: that of its sampling, or of a run that mixes in curated ones."""
    parts = wildcards["tail"].split("/")
    if "rollouts" in parts:
        return sizes.room(plan, parts[parts.index("rollouts") + 1])
    return max([run.dpo.max_length for run in plan.config.runs.values() if run.mix], default=0)


def tokens(plan: Runs, wildcards: Wildcards) -> float | None:
    """Tokens of both sides of all pairs."""
    count = sizes.pairs(plan, pairs(plan, wildcards))
    return None if count is None else 2 * count * sizes.exchange(plan)


CARDS = (
    Card(
        name="build_pairs",
        output=f"{FOLDER}/pairs/{{reward}}/{{pairing}}.parquet",
        inputs=build_inputs,
        settings=build_settings,
        first=True,
        local=True,
    ),
    Card(
        name="select_pairs",
        output="data/{dataset}/pairs/{pairing}.parquet",
        inputs=lambda plan, wildcards: {"dataset": plan.dataset(wildcards["dataset"])},
        settings=select_settings,
        local=True,
    ),
    Card(
        name="score_reference",
        output="{tail}/reference/{quantized}{scorer}.parquet",
        inputs=lambda plan, wildcards: {
            "scorer": plan.policy(wildcards["scorer"]),
            "pairs": pairs(plan, wildcards),
        },
        settings=reference_settings,
        first=True,
        compute=Compute(
            kind="score", model=lambda plan, wildcards: wildcards["scorer"], longest=longest, tokens=tokens
        ),
    ),
)
