"""Supervised fine-tuning: the policies that runs start from."""

from typing import Annotated, Literal

from pydantic import Field

from scripts.lib.kinds.common import Block, Flag
from scripts.lib.kinds.trainer import BatchSize, Finetuned, Finetuning, MaxLength


class SftTrain(Finetuning):
    """A base model, fine-tuned on conversations (paper, appendix B.3)."""

    kind: Literal["train"] = Field(description="Trained here.")
    base: str = Field(description="The base model to start from: an entry of `bases`.")
    dataset: str = Field(description="Conversations to train on: an entry of `datasets`.")
    batch_size: BatchSize = Field(
        default=32, description="Conversations in one optimizer step, over all devices; with packing, blocks."
    )
    max_length: MaxLength = Field(default=8192, description="Longer conversations, in tokens, are dropped and counted.")
    packing: Flag = Field(
        default=False,
        description="Whether whole conversations share blocks of max_length tokens, by best fit; none sees another.",
    )


class SftAdopt(Block):
    """Takes a base model that is instruction-tuned already as the SFT policy."""

    kind: Literal["adopt"] = Field(
        description="Taken as it is; only its generation config gets the tokens that end a turn."
    )
    base: str = Field(description="The base model to take: an entry of `bases`.")


Sft = Annotated[SftTrain | SftAdopt, Field(discriminator="kind")]


# Settings of stages


class TrainSft(SftTrain, Finetuned):
    """An SFT policy that is trained."""

    seed: int


class AdoptSft(Block):
    """A base model taken as it is."""
