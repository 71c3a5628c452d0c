"""Log-probabilities of responses under another policy: sums over the response's tokens, in nats."""

import polars as pl

LOGPROBS = {"prompt_id": pl.String, "k": pl.Int32, "logprob": pl.Float64, "tokens": pl.Int32}
