"""Rollouts of a policy, and what labellers and other policies say of them."""

from collections.abc import Callable

from scripts.lib.kinds.common import Block
from scripts.lib.kinds.config import Config
from scripts.lib.kinds.rewards import RewardBt, RewardVerifier, ScoreRollouts, VerifyRollouts
from scripts.lib.kinds.sampling import CheckEngine, SampleRollouts, ScoreLogprobs
from scripts.lib.planning import sizes
from scripts.lib.planning.card import Card, Compute, Inputs, Wildcards
from scripts.lib.planning.runs import Runs
from scripts.lib.stage.errors import ConfigError


def sample_settings(plan: Runs, wildcards: Wildcards) -> Block:
    """One shard of a policy's responses."""
    name, shards = wildcards["prompts"].rsplit("-", 1)[0], plan.shards(wildcards["prompts"])
    block, sampling = plan.config.prompts[name], plan.config.samplings[wildcards["sampling"]]
    if int(wildcards["shard"]) not in shards:
        raise ConfigError(
            f"prompt set {wildcards['prompts']!r} has shards 0 to {shards[-1]}; there is no shard "
            f"{wildcards['shard']}. Hint: size and shard_prompts of prompts.{name} decide."
        )
    # The rows, not the block's size: another size that leaves a shard its rows samples nothing again.
    first = int(wildcards["shard"]) * block.shard_prompts
    rows = min(block.shard_prompts, block.size - first)
    # The trainer's own library is compared with nothing, and where all log-probabilities are kept no number counts.
    needless = sampling.engine == "transformers" or sampling.record_logprobs
    checked = {"check_responses": 0} if needless else {}
    return SampleRollouts(**plan.seeded(sampling) | checked, first=first, prompts=rows, dtype=plan.config.dtype)


def place(wildcards: Wildcards) -> tuple[str, str, str]:
    """(policy, sampling, prompts) of a job beneath a policy."""
    return wildcards["policy"], wildcards["sampling"], wildcards["prompts"]


def shard(plan: Runs, wildcards: Wildcards) -> str:
    """The shard of rollouts that a job reads."""
    return plan.rollouts_shard(*place(wildcards), wildcards["shard"])


def label_inputs(plan: Runs, wildcards: Wildcards) -> Inputs:
    """The model of a labeller, if it has one, and the rollouts."""
    models = plan.labeller(wildcards["reward"])
    return {**({"model": models[0]} if models else {}), "rollouts": shard(plan, wildcards)}


def labelled_by(stage: str) -> Callable[[Config], dict[str, list[str]]]:
    """The rewards that a stage writes."""
    return lambda config: {"reward": [name for name, block in config.rewards.items() if block.stage == stage]}


def score_settings(plan: Runs, wildcards: Wildcards) -> Block:
    """Rewards by a model."""
    kind = plan.config.rewards[wildcards["reward"]].kind
    return ScoreRollouts(labeller=kind, dtype=plan.config.dtype)


def verify_settings(plan: Runs, wildcards: Wildcards) -> Block:
    """Rewards by a rule."""
    block = plan.config.rewards[wildcards["reward"]]
    assert isinstance(block, RewardVerifier)  # noqa: S101
    return VerifyRollouts(verifier=block.verifier)


def longest(plan: Runs, wildcards: Wildcards) -> int:
    """The longest prompt with the longest response."""
    return sizes.room(plan, wildcards["sampling"])


def tokens(plan: Runs, wildcards: Wildcards, read: bool = True) -> float:
    """Tokens of one shard of responses; in sampling only those that are written."""
    return sizes.responses(plan, wildcards["prompts"], wildcards["sampling"], wildcards["shard"], read)


def check_tokens(plan: Runs, wildcards: Wildcards) -> float:
    """Tokens of the responses that are compared with the trainer."""
    compared = plan.config.samplings[wildcards["sampling"]].check_responses
    return len(plan.shards(wildcards["prompts"])) * compared * sizes.exchange(plan)


def init_of(plan: Runs, wildcards: Wildcards) -> str:
    """The model that a labeller's model was trained from, which has its shape."""
    block = plan.config.rewards[wildcards["reward"]]
    assert isinstance(block, RewardBt)  # noqa: S101
    return block.init


FOLDER = "{policy}/rollouts/{sampling}/{prompts}"
REWARDS = f"{FOLDER}/rewards/{{reward}}/{{shard}}.parquet"
CARDS = (
    Card(
        name="sample_rollouts",
        output=f"{FOLDER}/{{shard}}.parquet",
        inputs=lambda plan, wildcards: {
            "policy": plan.policy(wildcards["policy"]),
            "prompts": plan.prompts(wildcards["prompts"]),
        },
        settings=sample_settings,
        compute=Compute(
            kind="sample",
            model=lambda plan, wildcards: wildcards["policy"],
            longest=longest,
            tokens=lambda plan, wildcards: tokens(plan, wildcards, read=False),
        ),
    ),
    Card(
        name="check_engine",
        output=f"{FOLDER}/engine.parquet",
        inputs=lambda plan, wildcards: {
            "policy": plan.policy(wildcards["policy"]),
            "rollouts": plan.rollouts(*place(wildcards)),
        },
        settings=lambda plan, wildcards: CheckEngine(dtype=plan.config.dtype),
        first=True,
        compute=Compute(
            kind="score", model=lambda plan, wildcards: wildcards["policy"], longest=longest, tokens=check_tokens
        ),
    ),
    Card(
        name="score_rollouts",
        output=REWARDS,
        makes=labelled_by("score_rollouts"),
        inputs=label_inputs,
        settings=score_settings,
        compute=Compute(kind="score", model=init_of, longest=longest, tokens=tokens, scalar_head=True),
    ),
    Card(
        name="verify_rollouts",
        output=REWARDS,
        makes=labelled_by("verify_rollouts"),
        inputs=label_inputs,
        settings=verify_settings,
    ),
    Card(
        name="score_logprobs",
        output=f"{FOLDER}/logprobs/{{scorer}}/{{shard}}.parquet",
        inputs=lambda plan, wildcards: {
            "scorer": plan.policy(wildcards["scorer"]),
            "rollouts": shard(plan, wildcards),
        },
        settings=lambda plan, wildcards: ScoreLogprobs(dtype=plan.config.dtype),
        compute=Compute(
            kind="score", model=lambda plan, wildcards: wildcards["scorer"], longest=longest, tokens=tokens
        ),
    ),
)
