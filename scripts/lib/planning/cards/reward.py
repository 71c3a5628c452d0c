"""Reward models: trained on curated preferences."""

from scripts.lib.kinds import rewards as kinds
from scripts.lib.kinds.common import Block
from scripts.lib.kinds.config import Config
from scripts.lib.kinds.rewards import TrainReward
from scripts.lib.planning import sizes
from scripts.lib.planning.card import Card, Compute, Inputs, Wildcards
from scripts.lib.planning.runs import Runs


def trained(plan: Runs, wildcards: Wildcards) -> kinds.RewardBt:
    """The settings block of a reward model that is trained."""
    block = plan.config.rewards[wildcards["reward"]]
    assert isinstance(block, kinds.RewardBt)  # noqa: S101
    return block


def settings(plan: Runs, wildcards: Wildcards) -> Block:
    """A reward model; which table plays which role stands here too, as Snakemake would miss a swap of inputs."""
    return TrainReward(**plan.seeded(trained(plan, wildcards)), dtype=plan.config.dtype)


def inputs(plan: Runs, wildcards: Wildcards) -> Inputs:
    """The model to start from, and two tables of preferences."""
    block = trained(plan, wildcards)
    return {
        "init": plan.model(block.init),
        "dataset": plan.dataset(block.dataset),
        "heldout": plan.dataset(block.heldout),
    }


def tokens(plan: Runs, wildcards: Wildcards) -> float | None:
    """Tokens of the training."""
    block = trained(plan, wildcards)
    return sizes.trained(plan, sizes.rows(plan, block.dataset), 2, block.max_length, block.epochs)


def with_models(config: Config) -> dict[str, list[str]]:
    """The rewards that are models trained here."""
    return {"reward": [name for name, block in config.rewards.items() if isinstance(block, kinds.RewardBt)]}


CARDS = (
    Card(
        name="train_reward",
        output="reward/{reward}/model",
        makes=with_models,
        inputs=inputs,
        settings=settings,
        first=True,
        compute=Compute(
            kind="train",
            model=lambda plan, wildcards: trained(plan, wildcards).init,
            trainer=trained,
            trainer_key=lambda wildcards: f"rewards.{wildcards['reward']}",
            longest=lambda plan, wildcards: trained(plan, wildcards).max_length,
            tokens=tokens,
            sides=2,
            spreads=True,
            scalar_head=True,
        ),
    ),
)
