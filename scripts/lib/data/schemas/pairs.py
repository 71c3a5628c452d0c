"""Preference pairs to train on.

Token ids are canonical, and null only for curated pairs, which the trainer's tokenizer turns into ids.
"""

import polars as pl

from scripts.lib.data.columns import MESSAGES, TOKENS

PAIRS = {
    "pair_id": pl.String,
    "prompt_id": pl.String,
    "messages": MESSAGES,
    "chosen": pl.String,
    "rejected": pl.String,
    "chosen_k": pl.Int32,
    "rejected_k": pl.Int32,
    "chosen_reward": pl.Float64,
    "rejected_reward": pl.Float64,
    "margin": pl.Float64,
    "prompt_ids": TOKENS,
    "chosen_ids": TOKENS,
    "rejected_ids": TOKENS,
    "chosen_finish_reason": pl.String,
    "rejected_finish_reason": pl.String,
}
