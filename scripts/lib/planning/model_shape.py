"""The shape of a language model and its parameters: what memory is forecast from. No torch.

Counts are those of transformers' Llama and of what is built like it (Mistral, Qwen2, Qwen3, SmolLM): RMSNorm, grouped
queries, a gated feed-forward network. The `shape` of a configuration has no biases: Qwen2.5-7B counts 129,024
parameters fewer by it, 0.002 %. Its own config.json is counted exactly. Of a mixture of experts nothing is forecast.
"""

import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from scripts.lib.data import shapes, world
from scripts.lib.data.shapes import KEYS
from scripts.lib.kinds.bases import Base, BaseFolder, BaseWorld
from scripts.lib.planning.cards.base import CONTEXT
from scripts.lib.stage.digest import ROOT
from scripts.lib.stage.errors import Complaints

Config = dict[str, Any]
# The world has few words, and its first texts hold them all; beside them scripts/make_base.py has seven special tokens
# and the three roles.
WORLD_TEXTS, WORLD_TOKENS = 300, 10


@dataclass(frozen=True)
class Shape:
    """Sizes in elements; which biases there are, and whether queries and keys are normed; the longest sequence."""

    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    tied: bool
    input_biases: bool = False  # of queries, keys and values
    output_bias: bool = False
    feed_forward_biases: bool = False
    head_norms: bool = False
    positions: int | None = None

    @property
    def queries(self) -> int:
        """Width of all queries."""
        return self.heads * self.head_size

    @property
    def keys(self) -> int:
        """Width of all keys, and of all values."""
        return self.kv_heads * self.head_size

    def linears(self) -> dict[str, tuple[int, int]]:
        """Name → (in, out) of the linear layers of one block."""
        hidden, inner = self.hidden_size, self.intermediate_size
        return {
            "q_proj": (hidden, self.queries),
            "k_proj": (hidden, self.keys),
            "v_proj": (hidden, self.keys),
            "o_proj": (self.queries, hidden),
            "gate_proj": (hidden, inner),
            "up_proj": (hidden, inner),
            "down_proj": (inner, hidden),
        }

    def linear_parameters(self) -> int:
        """Weights of the linear layers of all blocks."""
        return self.layers * sum(a * b for a, b in self.linears().values())

    def parameters(self, scalar_head: bool = False) -> int:
        """All parameters, a tied head once; with `scalar_head` those of a reward model, which has no other head."""
        biases = self.input_biases * (self.queries + 2 * self.keys) + self.output_bias * self.hidden_size
        biases += self.feed_forward_biases * (2 * self.intermediate_size + self.hidden_size)
        norms = 2 * self.hidden_size + self.head_norms * 2 * self.head_size
        head = self.hidden_size if scalar_head else 0 if self.tied else self.vocabulary * self.hidden_size
        embedding = self.vocabulary * self.hidden_size
        return self.linear_parameters() + self.layers * (biases + norms) + embedding + self.hidden_size + head

    def adapters(self, rank: int, targets: list[str]) -> int:
        """Parameters of low-rank adapters, r · (in + out) for each layer that has one (Hu et al. 2021, section 4.1)."""
        named = [sizes for name, sizes in self.linears().items() if name in targets or "all-linear" in targets]
        return self.layers * rank * sum(a + b for a, b in named)


def of_config(config: Config) -> Shape | None:
    """The shape in a config.json; None where it lacks a size or is no dense decoder."""
    text = config.get("text_config") or config
    if any(text.get(key) for key in ("num_local_experts", "num_experts", "n_routed_experts")):
        return None
    try:
        hidden, heads = int(text["hidden_size"]), int(text["num_attention_heads"])
        sizes = [int(text[key]) for key in ("intermediate_size", "num_hidden_layers", "vocab_size")]
    except (KeyError, TypeError, ValueError):
        return None
    kind, biased = text.get("model_type", ""), bool(text.get("attention_bias"))
    return Shape(
        hidden_size=hidden,
        intermediate_size=sizes[0],
        layers=sizes[1],
        heads=heads,
        kv_heads=int(text.get("num_key_value_heads") or heads),
        head_size=int(text.get("head_dim") or hidden // heads),
        vocabulary=sizes[2],
        tied=bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))),
        input_biases=biased or kind == "qwen2",  # Qwen2 has them without a word in its configuration
        output_bias=biased,
        feed_forward_biases=bool(text.get("mlp_bias")),
        head_norms=kind == "qwen3",
        positions=shapes.positions(config),
    )


def of_block(block: Base) -> Shape | None:
    """The shape that a base's entry in the configuration says; of a `world` base as scripts/make_base.py makes it."""
    if isinstance(block, BaseWorld):
        hidden, heads = block.hidden_size, block.heads
        return Shape(hidden, 2 * hidden, block.layers, heads, heads, hidden // heads, _world_vocabulary(), tied=True)
    said = getattr(block, "shape", None)
    if said is None:
        return None
    return of_config({name: getattr(said, key) for key, name in KEYS.items()})


@cache
def _world_vocabulary() -> int:
    """Tokens of a `world` base: words, marks and line breaks of its texts, and what its template needs."""
    texts = world.corpus(WORLD_TEXTS, seed=1)
    return len({word for text in texts for word in re.findall(r"\n\n|\w+|[^\w\s]", text)}) + WORLD_TOKENS


def of_base(block: Base, made: Path) -> Shape | None:
    """The shape of a base: of the model that has been made of this entry, of a local folder's, or as the entry says."""
    for file in _files(block, made):
        shape = of_config(_read(file))
        if shape:
            return shape
    return of_block(block)


def _files(block: Base, made: Path | None) -> list[Path]:
    """The config.json of the model that has been made of an entry, and that of a local folder."""
    files = [made / "config.json"] if made and _made_of(block, made) else []
    return [*files, ROOT / block.path / "config.json"] if isinstance(block, BaseFolder) else files


def positions(key: str, block: Base, made: Path | None) -> tuple[int, str] | None:
    """The longest sequence that a base is made for, in tokens, and what says so; None where nothing does yet."""
    for file in _files(block, made):
        if longest := shapes.positions(_read(file)):
            return longest, f"{key} is made for {longest} by its config.json"
    if isinstance(block, BaseWorld):
        return CONTEXT, f"{key}, of kind world, is made for {CONTEXT}"
    said = getattr(block, "shape", None)
    return (said.positions, f"{key}.shape.positions is {said.positions}") if said and said.positions else None


def check_folder(key: str, block: BaseFolder, complaints: Complaints) -> None:
    """Complain of a local folder that holds no model, or one whose weights are quantised."""
    folder = ROOT / block.path
    if not folder.is_dir():
        return  # what is missing is said of all sources together
    lacking = [name for name in ("config.json", "*.safetensors") if not any(folder.glob(name))]
    if lacking:
        hint = "name a folder in Hugging Face format; pickled weights are not read."
        complaints.add(f"{key}.path", block.path, f"no {' and no '.join(lacking)} there", hint)
    elif method := shapes.quantization(_read(folder / "config.json")):
        hint = "take the unquantised version; `lora.quantization: nf4` saves memory in training."
        complaints.add(f"{key}.path", block.path, f"weights are quantised ({method}); training needs floats", hint)


def check(key: str, block: Base, made: Path, complaints: Complaints) -> None:
    """Complain where the `shape` of an entry is not that of the model which has been made of it."""
    said = getattr(block, "shape", None)
    real = of_config(_read(made / "config.json")) if said and _made_of(block, made) else None
    if not said or not real:
        return
    for name in KEYS:
        stated, actual = getattr(said, name), getattr(real, name)
        if None not in (stated, actual) and stated != actual:
            text = f"the model has {actual}"
            complaints.add(f"{key}.shape.{name}", stated, text, "write that, or leave `shape` out: the model is there.")


def _made_of(block: Base, made: Path) -> bool:
    """Whether the model at `made` comes from this entry: its manifest says from what it was made."""
    settings = _read(made.with_name(made.name + ".json")).get("settings", {})
    stated = block.model_dump(mode="json", exclude={"seed", "shape"})
    return bool(settings) and all(stated[key] == value for key, value in settings.items() if key in stated)


def _read(file: Path) -> Config:
    """A JSON object; empty where there is none that can be read."""
    try:
        read = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return read if isinstance(read, dict) else {}
