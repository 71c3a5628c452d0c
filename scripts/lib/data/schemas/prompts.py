"""Prompts: what a policy is asked.

`metadata` is JSON text for verifiers (the world's requests, a reference answer), "" where there is none.
"""

import polars as pl

from scripts.lib.data.columns import MESSAGES

PROMPTS = {"prompt_id": pl.String, "source": pl.String, "messages": MESSAGES, "metadata": pl.String}
