"""What a model's own config.json says: its shape against that of the configuration, and what it is made for."""

from typing import Any

from scripts.lib.kinds.bases import Shape
from scripts.lib.stage.errors import InputError

# Our key → the key in transformers' configurations.
KEYS = {
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_size": "head_dim",
    "vocabulary": "vocab_size",
    "tied": "tie_word_embeddings",
    "positions": "max_position_embeddings",
}

# Where architectures say how long a sequence may be: Llama and most, GPT-2, MPT.
POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len")
SCALED_ALREADY = {None, "default", "llama3", "longrope", "su"}


def positions(config: dict[str, Any]) -> int | None:
    """Longest sequence, in tokens, that a model is made for by its config.json; None where it does not say.

    Scaled rotary embeddings count as in vLLM (`_get_and_verify_max_len`): yarn multiplies the original length by its
    factor, linear and dynamic scaling the stated one; for the others it is included already.
    """
    text = config.get("text_config") or config
    length = next((text[name] for name in POSITIONS if isinstance(text.get(name), int)), None)
    scaling = text.get("rope_scaling") or text.get("rope_parameters") or {}
    kind, factor = scaling.get("rope_type", scaling.get("type")), scaling.get("factor")
    if length is None or kind in SCALED_ALREADY or not isinstance(factor, int | float):
        return length
    original = scaling.get("original_max_position_embeddings") if kind == "yarn" else None
    return int((original or length) * factor)


def quantization(config: dict[str, Any]) -> str | None:
    """How a model's weights are quantised; None for float weights."""
    said = config.get("quantization_config")
    return str(said.get("quant_method", "unknown")) if isinstance(said, dict) else None


def refuse_quantized(config: dict[str, Any]) -> None:
    """Raise InputError for a model whose weights are quantised."""
    if method := quantization(config):
        raise InputError(
            f"config.json: the weights are quantised ({method}), and training needs float weights\n"
            "Hint: take the model's unquantised version; `lora.quantization: nf4` saves memory in training."
        )


def refuse_beyond(config: dict[str, Any], tokens: int, what: str, hint: str) -> None:
    """Raise InputError where `what`, of so many tokens, is longer than the model is made for."""
    longest = positions(config)
    if longest is not None and tokens > longest:
        raise InputError(f"{what} = {tokens} tokens: the model is made for {longest}\nHint: {hint}")


def check(stated: Shape | None, config: dict[str, Any]) -> None:
    """Raise InputError, naming both values, unless the model's config.json has the shape that was stated.

    Where config.json omits the number of key-value heads or the head size, transformers' default applies.
    """
    if stated is None:
        return
    sizes = {"num_key_value_heads": config.get("num_attention_heads"), "head_dim": None, **config}
    wanted = {key: value for key, value in stated.model_dump().items() if value is not None}
    if sizes["head_dim"] is None and sizes.get("hidden_size") and sizes.get("num_attention_heads"):
        sizes["head_dim"] = sizes["hidden_size"] // sizes["num_attention_heads"]
    if "head_size" not in wanted:
        wanted["head_size"] = wanted["hidden_size"] // wanted["heads"]
    wrong = [
        f"shape.{key} = {wanted[key]!r}: the model's {name} is {sizes[name]!r}"
        for key, name in KEYS.items()
        if key in wanted and name in sizes and sizes[name] != wanted[key]
    ]
    missing = [name for key, name in KEYS.items() if key in wanted and key != "tied" and name not in sizes]
    if missing:
        wrong.append(f"the model's config.json has no {', '.join(missing)}")
    if wrong:
        raise InputError("\n".join(wrong) + "\nHint: correct `shape`, which the memory forecast uses, or `repo`.")
