"""Responses of a policy: K to each prompt, numbered by `k` from 0.

`finish_reason` is "stop" (the model ended its turn; `token_ids` then end with the end-of-turn token) or "length".
`logprob` is the sum over `token_ids` at temperature 1 as the engine saw it, in nats; null unless recorded.
`trainable` is false where the text does not round-trip to exactly these tokens (chat.trainable).
"""

import polars as pl

from scripts.lib.data.columns import MESSAGES, TOKENS

ROLLOUTS = {
    "prompt_id": pl.String,
    "k": pl.Int32,
    "messages": MESSAGES,
    "metadata": pl.String,
    "prompt_ids": TOKENS,
    "response": pl.String,
    "token_ids": TOKENS,
    "finish_reason": pl.String,
    "tokens": pl.Int32,
    "temperature": pl.Float64,
    "seed": pl.Int64,
    "logprob": pl.Float64,
    "trainable": pl.Boolean,
}
