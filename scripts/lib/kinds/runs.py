"""Runs: iterations of sampling, labelling and training."""

from typing import Annotated, Literal

from pydantic import Field, Tag

from scripts.lib.kinds.common import AsNumber, Block, Count, Number, OnlySet, Positive, PositiveShare
from scripts.lib.kinds.data import TextOrList
from scripts.lib.kinds.trainer import BatchSize, Epochs, Finetuned, Finetuning, LearningRate, MaxLength

Loss = Literal[
    "sigmoid",
    "sigmoid_norm",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sft",
]
# Losses that sort the rows of a batch, so that a part of the batch has another loss. In TRL 1.16 all others are means
# over pairs; bco_pair too, which keeps no running mean there.
WHOLE_BATCH = frozenset({"aot", "aot_unpaired"})


class Dpo(Finetuning):
    """Direct preference optimisation on pairs (paper, table 7)."""

    learning_rate: LearningRate = 5e-7
    beta: Positive = Field(default=0.1, description="How strongly the policy is held to its reference.")
    loss: list[Loss] = Field(
        default=["sigmoid"],
        min_length=1,
        description="TRL's names; several are summed with loss_weights. aot and aot_unpaired sort the rows of a batch, "
        "so they need runtime.train_micro_batch to hold all of it.",
    )
    loss_weights: list[Number] | None = Field(
        default=None, description="One number for each of `loss`; null weighs them alike."
    )
    label_smoothing: Annotated[float, Field(ge=0, le=0.5, allow_inf_nan=False), AsNumber] = Field(
        default=0.0, description="Share of the pairs whose label is taken to be wrong; not every loss uses it."
    )
    epochs: Epochs = 2.0
    batch_size: BatchSize = Field(default=128, description="Pairs in one optimizer step, over all devices.")
    max_length: MaxLength = Field(
        default=4096, description="Tokens; must hold the longest prompt and response, because nothing is cut."
    )


class Raft(Finetuning):
    """SFT on the best of K responses (reward-ranked fine-tuning)."""

    learning_rate: LearningRate = 1e-6
    batch_size: BatchSize = Field(default=128, description="Responses in one optimizer step, over all devices.")
    max_length: MaxLength = Field(
        default=4096, description="Tokens; must hold the longest prompt and response, because nothing is cut."
    )


class Mix(Block):
    """Curated preferences that a run trains on as well."""

    dataset: str = Field(description="The preferences: an entry of `datasets`.")
    pairing: str = Field(description="Which of their pairs are kept: an entry of `pairings`.")
    weight: PositiveShare = Field(default=1.0, description="Share of the pairs to use.")


class Iteration(Block):
    """What an iteration of a run sets for itself; everything else is the run's."""

    reward: str | None = Field(default=None, description="The labeller in this iteration; null is the run's.")
    sampling: str | None = Field(default=None, description="The sampling in this iteration; null is the run's.")
    pairing: str | None = Field(default=None, description="The pairing in this iteration; null is the run's.")
    dpo: Annotated[Dpo, OnlySet] | None = Field(default=None, description="Keys of the run's `dpo` to change.")
    raft: Annotated[Raft, OnlySet] | None = Field(default=None, description="Keys of the run's `raft` to change.")


class Run(Block):
    """An experiment: in each iteration a policy is sampled, its responses are labelled, and the next one is trained."""

    method: Literal["dpo", "raft"] = Field(default="dpo", description="What trains the policy.")
    sft: str = Field(description="The policy that iteration 1 samples from: an entry of `sft`.")
    iterations: Count = Field(default=3, description="Number of iterations.")
    prompts: str | None = Field(
        default=None, description="Prompt set to sample on; null trains on `mix` only (offline)."
    )
    reward: str | None = Field(default=None, description="The labeller: an entry of `rewards`.")
    sampling: str | None = Field(default=None, description="How responses are drawn: an entry of `samplings`.")
    pairing: str | None = Field(default=None, description="How they become pairs: an entry of `pairings`.")
    start: Literal["previous", "sft"] = Field(
        default="previous",
        description="Weights that an iteration's training starts from: the previous iteration's, or the SFT policy's.",
    )
    reference: Literal["sft", "previous"] = Field(
        default="sft", description="DPO's reference; the paper keeps the SFT policy (section 3.3)."
    )
    train_on: Literal["this", "all"] = Field(
        default="this", description="Train on what this iteration has made, or on what all so far have made."
    )
    mix: list[Mix] = Field(default=[], description="Curated preferences to train on as well.")
    dpo: Dpo = Field(default_factory=Dpo, description="Settings of a dpo run's training.")
    raft: Raft = Field(default_factory=Raft, description="Settings of a raft run's training.")
    keep: Annotated[
        Annotated[str, Field(pattern="^(all|last)$"), Tag("string")] | Annotated[list[Count], Tag("array")], TextOrList
    ] = Field(
        default="all",
        description="Iterations whose weights `snakemake prune` leaves on disk: all, last, or a list of numbers. "
        "Changing it reruns nothing.",
    )
    overrides: dict[Annotated[str, Field(pattern=r"^[1-9][0-9]*$")], Iteration] = Field(
        default={}, description="Iteration number → what it sets for itself."
    )

    @property
    def trainer(self) -> Finetuning:
        """The settings of the run's training: the block named like its method."""
        block: Finetuning = getattr(self, self.method)
        return block

    @property
    def has_pairs(self) -> bool:
        """Whether the run makes preference pairs of its own responses."""
        return self.method == "dpo" and self.prompts is not None

    def at(self, n: int) -> "Run":
        """The run as iteration n trains it: what `overrides` set for n laid over the run's own settings."""
        override = self.overrides.get(str(n), Iteration())
        changed: dict[str, object] = {}
        for key in override.model_fields_set:
            value = getattr(override, key)
            if value is not None:
                changed[key] = value.over(getattr(self, key)) if isinstance(value, Block) else value
        return self.model_copy(update=changed)


# Settings of stages


class TrainDpo(Dpo, Finetuned):
    """One DPO step: the policies that it starts from and is held to, and its tables with their weights, in order."""

    seed: int
    start: str
    reference: str
    sources: list[tuple[str, float]]


class TrainRaft(Raft, Finetuned):
    """One RAFT step."""

    seed: int
