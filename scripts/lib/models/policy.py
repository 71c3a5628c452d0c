"""A policy as it is saved: weights, tokenizer, chat template, and the tokens at which it stops.

Whoever loads the folder with `generate`, vLLM or an evaluation harness takes the stop tokens and the habits of sampling
from its generation_config.json. A base model's own file may lack the token that ends a turn, so that responses never
end, and may name a temperature or a repetition penalty that the policy was not trained with.
"""

from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from scripts.lib.models import chat, loading


def generation_config(tokenizer: Any, own: GenerationConfig | None) -> GenerationConfig:
    """The tokens that sampling in this project stops at, and nothing else: greedy decoding unless the caller asks.

    `own` is the model's generation config, whose stop tokens are kept. Without a padding token the first stop token
    pads, as it does in sampling here.
    """
    stops = chat.stop_ids(tokenizer, own)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else stops[0]
    return GenerationConfig(bos_token_id=tokenizer.bos_token_id, eos_token_id=stops, pad_token_id=pad)


def save(model: Any, tokenizer: Any, folder: Path, dtype: str) -> None:
    """Save a policy that was trained."""
    model.generation_config = generation_config(tokenizer, model.generation_config)
    loading.save(model, tokenizer, folder, dtype)


def settle(folder: Path) -> None:
    """Write the generation config of a policy whose other files are in the folder already."""
    tokenizer = loading.load_tokenizer(folder)
    generation_config(tokenizer, loading.generation_config(folder)).save_pretrained(folder)
