"""Checks a base model's shape in the configuration against the model's own config.json."""

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
