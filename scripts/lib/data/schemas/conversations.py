"""Conversations to fine-tune on; each ends with an assistant turn."""

import polars as pl

from scripts.lib.data.columns import MESSAGES

CONVERSATIONS = {"conversation_id": pl.String, "prompt_id": pl.String, "source": pl.String, "messages": MESSAGES}
