"""What every block that trains has in common: the optimizer's settings, and low-rank adapters."""

from typing import Annotated, Literal

from pydantic import Field

from scripts.lib.kinds.common import (
    AsInteger,
    AsNumber,
    BelowOne,
    Block,
    Count,
    NotNegative,
    Positive,
    Seed,
    Share,
    Typed,
)

LearningRate = Annotated[Positive, Field(description="Peak learning rate.")]
Epochs = Annotated[Positive, Field(description="Passes over the training rows; may be a fraction.")]
BatchSize = Annotated[Count, Field(description="Rows in one optimizer step, over all devices.")]
WarmupRatio = Annotated[Share, Field(description="Share of the steps in which the learning rate rises from 0.")]
WeightDecay = Annotated[NotNegative, Field(description="AdamW's weight decay.")]
AdamBeta2 = Annotated[BelowOne, Field(description="AdamW's second beta.")]
Schedule = Literal["cosine", "linear", "constant", "constant_with_warmup"]
MaxLength = Annotated[int, Field(ge=8), AsInteger]


class Trainer(Block):
    """The optimizer's settings; each block that trains gives its own defaults."""

    learning_rate: LearningRate = 2e-5
    epochs: Epochs = 1.0
    batch_size: BatchSize = 128
    schedule: Schedule = Field(default="cosine", description="Learning-rate schedule after the warm-up.")
    warmup_ratio: WarmupRatio = 0.03
    weight_decay: WeightDecay = 0.0
    adam_beta2: AdamBeta2 = 0.999


class Lora(Block):
    """Trains low-rank adapters instead of all weights. What is saved are whole weights with the adapters merged in."""

    r: Count = Field(default=16, description="Rank of the adapters.")
    alpha: Positive = Field(default=32.0, description="The adapters' product is scaled by alpha / r.")
    dropout: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False), AsNumber] = Field(
        default=0.0, description="Dropout in front of the adapters while training."
    )
    targets: list[str] = Field(
        default=["all-linear"],
        min_length=1,
        description="Names of the linear layers that get an adapter; all-linear names all but the head.",
    )
    quantization: Literal["nf4"] | None = Field(
        default=None, description="nf4 holds the frozen weights in 4 bits while training (QLoRA)."
    )


class Finetuning(Trainer):
    """A trainer of whole models: longest row, adapters, and a seed of its own."""

    max_length: MaxLength = Field(default=4096, description="Longest row, tokens.")
    lora: Lora | None = Field(default=None, description="Train low-rank adapters; null trains all weights.")
    seed: Seed = None


# Settings of stages


class Trained(Trainer, Typed):
    """What the settings of all stages that train have: the optimizer's, a number format, and the seed that holds."""

    seed: int


class Finetuned(Finetuning, Trained):
    """What the settings of the stages have that train whole models, perhaps by adapters."""

    seed: int
