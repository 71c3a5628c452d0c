"""Column types that several tables share."""

import polars as pl

# Chat turns, {role, content}.
MESSAGES = pl.List(pl.Struct({"role": pl.String, "content": pl.String}))
TOKENS = pl.List(pl.Int32)
