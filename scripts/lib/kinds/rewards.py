"""Labellers of responses: reward models and rules."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from scripts.lib.kinds.common import Block, NotNegative, Typed, member_of
from scripts.lib.kinds.trainer import BatchSize, Finetuned, Finetuning, LearningRate, MaxLength, WeightDecay


class RewardBt(Finetuning):
    """A Bradley-Terry model: a scalar head on the last token (paper, section 2.1)."""

    stage: ClassVar[str] = "score_rollouts"  # what writes its rewards
    has_model: ClassVar[bool] = True  # reward/NAME/model, which labelling reads
    kind: Literal["bt"] = Field(description="A trained reward model.")
    init: str = Field(description="Weights to start from: sft/NAME or base/NAME.")
    dataset: str = Field(description="Preferences to train on: an entry of `datasets`.")
    heldout: str = Field(
        description="Preferences for the held-out accuracy and calibration. They must be other rows than the training "
        "set's; two patterns of one repository count as such only where they begin differently (data/train-*, "
        "data/test-*)."
    )
    learning_rate: LearningRate = 2e-6
    batch_size: BatchSize = Field(default=512, description="Pairs in one optimizer step, over all devices.")
    weight_decay: WeightDecay = 0.001
    max_length: MaxLength = Field(
        default=4096, description="Pairs with a side that is longer, in tokens, are dropped and counted."
    )
    center_rewards_coefficient: NotNegative | None = Field(
        default=None, description="Weight of the loss that pulls rewards towards a mean of 0; null leaves it out."
    )


class RewardVerifier(Block):
    """A rule that scores a response from the prompt's metadata; it needs no model."""

    stage: ClassVar[str] = "verify_rollouts"
    has_model: ClassVar[bool] = False
    kind: Literal["verifier"] = Field(description="A rule.")
    # `bt` scores by a model, so it is a kind of its own.
    verifier: Annotated[str, member_of("labels", but=("bt",))] = Field(
        description="A file of scripts/lib/labels by its name. world_gold is the world's own score, which no training "
        "sees."
    )


Reward = Annotated[RewardBt | RewardVerifier, Field(discriminator="kind")]


# Settings of stages


class TrainReward(RewardBt, Finetuned):
    """A reward model."""

    seed: int


class ScoreRollouts(Typed):
    """Rewards by a model; `labeller` is a file of scripts/lib/labels by its name."""

    labeller: str


class VerifyRollouts(Block):
    """Rewards by a rule; `verifier` is a file of scripts/lib/labels by its name."""

    verifier: str
