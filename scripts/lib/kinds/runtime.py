"""How fast the work goes and what it asks of a machine: keys that rerun nothing."""

from collections.abc import Collection
from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field, RootModel, ValidationInfo
from pydantic_core import PydanticCustomError

from scripts.lib.kinds.bases import Shape
from scripts.lib.kinds.common import (
    AsInteger,
    Block,
    Count,
    Flag,
    LocalPath,
    Natural,
    NotNegative,
    OnlySet,
    Positive,
    PositiveShare,
)


class Runtime(Block):
    """How fast the work goes. At most the last digits of what comes out depend on these keys."""

    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="What computes; auto takes a GPU where there is one."
    )
    torch_threads: Count | None = Field(
        default=None, description="Math threads of one step; null leaves the choice to torch."
    )
    train_micro_batch: Count = Field(
        default=8, description="Rows in one forward pass in training; must divide the batch sizes."
    )
    generate_batch: Count = Field(default=64, description="Responses generated at once by the transformers engine.")
    vllm_memory: PositiveShare = Field(default=0.9, description="Share of a GPU's memory that the vllm engine takes.")
    vllm_cpu_cache_gib: Count = Field(
        default=2, description="Memory for keys and values of the vllm engine on a machine without a GPU, GiB."
    )
    vllm_tensor_parallel: Count = Field(default=1, description="GPUs that one vllm engine spreads over.")
    rollout_python: LocalPath | None = Field(
        default=None,
        description="Interpreter of the environment with vllm; null takes the one that `make rollout-env` has made. "
        "Without either, nothing that vllm is to sample is begun. A cluster's site.yaml comes before it.",
    )
    shards_per_engine: Count = Field(
        default=1,
        description="Shards that one vllm engine may work through: its own, then those that no other step is making. "
        "Saves starting an engine for each.",
    )
    engine_tolerance: Positive | None = Field(
        default=None,
        description="Largest mean difference between vllm's and the trainer's log-probabilities, nats per token, at "
        "which an iteration still trains; null means 0.001 in float32 and 0.05 in bfloat16.",
    )
    score_tokens: Count = Field(default=16384, description="Padded tokens in one scoring batch.")
    checkpoint_minutes: NotNegative = Field(
        default=10.0,
        description="Minutes between two checkpoints of a step, and so the most that a killed step loses; 0 saves "
        "after every batch. Training saves at the next step that is logged, up to ten later.",
    )
    stop_on_warnings: Flag = Field(
        default=False,
        description="Whether a training step that warns fails instead and leaves no model: where its loss ended above "
        "its start, its gradient norm grew tenfold, or a reward model predicts no better than chance.",
    )
    gradient_checkpointing: Flag = Field(
        default=False, description="Recompute activations in the backward pass: less memory, more time."
    )
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = Field(
        default="auto",
        description="Attention kernel; auto takes flash_attention_2 where it is installed and the weights are bfloat16 "
        "on a GPU, sdpa elsewhere.",
    )
    trackers: list[Literal["tensorboard", "wandb", "mlflow", "trackio"]] = Field(
        default=["tensorboard"],
        description="Where training curves go. TensorBoard's files lie beneath {results}/logs/tensorboard, those of "
        "another in {results}/logs/NAME unless its own environment variables name another place.",
    )


class Resource(Block):
    """What a step takes of a machine, or asks a cluster for.

    The entry `default` holds for every stage; the keys of a stage's own entry lie over it.
    """

    threads: Count | None = Field(
        default=None,
        description="Cores on one node; null means runtime.torch_threads for each process of a step that computes, 1 "
        "for the rest.",
    )
    mem_mb: Annotated[int, Field(ge=100), AsInteger] = Field(
        default=8000, description="Memory on one node, MiB; twice as much in the second attempt, and so on."
    )
    runtime: Count = Field(default=120, description="Minutes; twice as many in the second attempt, and so on.")
    gpus: Natural | None = Field(
        default=None,
        description="GPUs on one node; null means one for a step that computes, none where runtime.device is cpu.",
    )
    nodes: Count = Field(default=1, description="Nodes of a training step; other steps take one.")
    processes: Count | None = Field(
        default=None,
        description="Processes of a training step on one node; null means one for each GPU, or one in all.",
    )
    sharding: Literal["data", "zero2", "zero3"] = Field(
        default="data",
        description="How the processes of a training step share the model: each holds all of it (data), or DeepSpeed "
        "spreads gradients and optimizer states (zero2), and weights too (zero3). In float32 only the last digits "
        "depend on it; in bfloat16 other numbers are rounded.",
    )


def _stage(name: str, info: ValidationInfo) -> str:
    """`default`, or a stage that asks for resources: of those in the context under `stages`, if it names them."""
    stages: Collection[str] = (info.context or {}).get("stages", (name,))
    if name not in ("default", *stages):
        raise PydanticCustomError("unknown_key", "unknown key", {"known": ["default", *stages]})
    return name


class Resources(RootModel[dict[Annotated[str, AfterValidator(_stage)], Annotated[Resource, OnlySet]]]):
    """What a step takes of a machine, or asks a cluster for: `default`, and over it what a stage's entry sets."""

    model_config = ConfigDict(frozen=True, strict=True)

    @property
    def default(self) -> Resource:
        """What holds for every stage that says nothing else."""
        return self.root.get("default", Resource())

    def own(self, stage: str) -> Resource:
        """A stage's own entry. Only the keys in its `model_fields_set` were given; an absent entry has none."""
        return self.root.get(stage, Resource())

    def of(self, stage: str) -> Resource:
        """A stage's own entry laid over `default`."""
        return self.own(stage).over(self.default)


class Forecast(Block):
    """What memory and time are forecast from, beside the configuration itself.

    It decides nothing but whether a plan that cannot fit is refused.
    """

    refuse: Flag = Field(
        default=True,
        description="A step that is forecast not to fit into the memory there is refuses the build; false only warns.",
    )
    gpus: Count | None = Field(
        default=None,
        description="GPUs that the build may have at once, on which shards run side by side; null means as many as the "
        "largest step asks for. Without GPUs it counts processes.",
    )
    device_memory_gib: Positive | None = Field(
        default=None,
        description="Memory of one GPU (or of the machine, where runtime.device is cpu), GiB; a step that needs more "
        "is refused. null checks nothing.",
    )
    prompt_tokens: Positive = Field(default=200.0, description="Expected tokens of a prompt.")
    response_tokens: Positive = Field(default=300.0, description="Expected tokens of a response.")
    train_tokens_per_second: Positive | None = Field(
        default=None,
        description="Tokens that one GPU (or process) trains on in a second, forward and backward; null forecasts no "
        "time.",
    )
    score_tokens_per_second: Positive | None = Field(
        default=None, description="Tokens that one GPU (or process) reads in a second in scoring."
    )
    sample_tokens_per_second: Positive | None = Field(
        default=None, description="Tokens that one engine writes in a second in sampling."
    )


# Settings of stages


class StageRuntime(Runtime):
    """What a stage is told beside its settings, and what never decides its result.

    A stage that computes is told the runtime keys and, where it trains in several processes, how they share the model;
    one that takes in a base, the shape to check it against. Without a word a stage stays on the processor.
    """

    device: Literal["auto", "cpu", "cuda"] = "cpu"
    sharding: Literal["data", "zero2", "zero3"] = "data"
    shape: Shape | None = None
