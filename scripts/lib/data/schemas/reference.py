"""Reference log-probabilities of preference pairs: sums over the answer's tokens, in nats."""

import polars as pl

REFERENCE = {
    "pair_id": pl.String,
    "chosen_logprob": pl.Float64,
    "rejected_logprob": pl.Float64,
    "chosen_tokens": pl.Int32,
    "rejected_tokens": pl.Int32,
}
