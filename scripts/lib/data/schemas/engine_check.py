"""Log-probabilities of the same tokens by the engine that drew them and by the trainer's forward pass, in nats."""

import polars as pl

ENGINE_CHECK = {
    "prompt_id": pl.String,
    "k": pl.Int32,
    "tokens": pl.Int32,
    "engine_logprob": pl.Float64,
    "trainer_logprob": pl.Float64,
}
