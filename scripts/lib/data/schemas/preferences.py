"""Curated preferences.

`chosen` and `rejected` are the text of the answers; `margin` is the annotator's score difference, null if not given.
"""

import polars as pl

from scripts.lib.data.columns import MESSAGES

PREFERENCES = {
    "pair_id": pl.String,
    "prompt_id": pl.String,
    "source": pl.String,
    "messages": MESSAGES,
    "chosen": pl.String,
    "rejected": pl.String,
    "margin": pl.Float64,
    "annotator": pl.String,
}
