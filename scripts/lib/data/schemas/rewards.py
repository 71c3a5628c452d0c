"""Rewards of responses, in the labeller's own unit.

`objectives` is JSON text with one value per objective where the labeller has several, "" otherwise.
"""

import polars as pl

REWARDS = {"prompt_id": pl.String, "k": pl.Int32, "reward": pl.Float64, "objectives": pl.String}
