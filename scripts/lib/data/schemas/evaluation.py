"""One policy's evaluation, per response.

`rewards` is JSON text with one value per labeller; `kl` is log π − log π(SFT) of the response, in nats.
"""

import polars as pl

from scripts.lib.data.columns import MESSAGES

EVALUATION = {
    "prompt_id": pl.String,
    "k": pl.Int32,
    "messages": MESSAGES,
    "temperature": pl.Float64,
    "response": pl.String,
    "tokens": pl.Int32,
    "finish_reason": pl.String,
    "kl": pl.Float64,
    "rewards": pl.String,
}
