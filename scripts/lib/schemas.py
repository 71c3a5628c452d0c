"""Schemas of every table, in one place, and the only way in which tables are read and written.

Messages are chat turns `{role, content}`. A `prompt_id` is the digest of the canonical messages, so the same
prompt has the same id wherever it appears. `k` numbers the responses to one prompt from 0. Rewards are in the
labeller's own unit, log-probabilities in nats, lengths in tokens unless a name says characters.
"""

from pathlib import Path
from typing import Any

import polars as pl

from scripts.lib.artifact import canonical_json, written_beside
from scripts.lib.digest import text_sha256
from scripts.lib.errors import InputError

MESSAGES = pl.List(pl.Struct({"role": pl.String, "content": pl.String}))
TOKENS = pl.List(pl.Int32)

# `metadata` is JSON text for verifiers (the world's requests, a reference answer), "" where there is none.
PROMPTS = {"prompt_id": pl.String, "source": pl.String, "messages": MESSAGES, "metadata": pl.String}
CONVERSATIONS = {"conversation_id": pl.String, "prompt_id": pl.String, "source": pl.String, "messages": MESSAGES}
# `chosen` and `rejected` are the answers' text; `margin` is the annotator's score difference, null if not given.
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
# `finish_reason` is "stop" (the model ended its turn; token_ids then end with the end-of-turn token) or "length".
# `logprob` is the sum over token_ids at temperature 1 as the engine saw it, null unless the sampling records it.
# `trainable` is false where the words do not stand for exactly these tokens (chat.trainable).
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
# `objectives` is JSON text with one value per objective where the labeller has several, "" otherwise.
REWARDS = {"prompt_id": pl.String, "k": pl.Int32, "reward": pl.Float64, "objectives": pl.String}
LOGPROBS = {"prompt_id": pl.String, "k": pl.Int32, "logprob": pl.Float64, "tokens": pl.Int32}
# Token ids are canonical and null only for curated pairs, which the trainer's tokenizer turns into ids.
PAIRS = {
    "pair_id": pl.String,
    "prompt_id": pl.String,
    "messages": MESSAGES,
    "chosen": pl.String,
    "rejected": pl.String,
    "chosen_k": pl.Int32,
    "rejected_k": pl.Int32,
    "chosen_reward": pl.Float64,
    "rejected_reward": pl.Float64,
    "margin": pl.Float64,
    "prompt_ids": TOKENS,
    "chosen_ids": TOKENS,
    "rejected_ids": TOKENS,
    "chosen_finish_reason": pl.String,
    "rejected_finish_reason": pl.String,
}
REFERENCE = {
    "pair_id": pl.String,
    "chosen_logprob": pl.Float64,
    "rejected_logprob": pl.Float64,
    "chosen_tokens": pl.Int32,
    "rejected_tokens": pl.Int32,
}
# Log-probabilities of the same tokens by the engine that drew them and by the trainer's forward pass.
ENGINE_CHECK = {
    "prompt_id": pl.String,
    "k": pl.Int32,
    "tokens": pl.Int32,
    "engine_logprob": pl.Float64,
    "trainer_logprob": pl.Float64,
}
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

Schema = dict[str, Any]


def prompt_id(messages: list[dict[str, str]]) -> str:
    """16 hex digits that name a prompt: the digest of its messages' roles and contents."""
    turns = [{"role": turn["role"], "content": turn["content"]} for turn in messages]
    return text_sha256(canonical_json(turns))[:16]


def write_table(path: Path, rows: list[dict[str, Any]] | pl.DataFrame, schema: Schema, key: tuple[str, ...]) -> int:
    """Write a table with exactly this schema, whole or not at all, and return its number of rows.

    Raises InputError if the rows do not fit the schema or if `key` is not unique.
    """
    hint = "Hint: a stage wrote rows that scripts/lib/schemas.py does not declare; this is a bug in the stage."
    for row in [dict.fromkeys(rows.columns)] if isinstance(rows, pl.DataFrame) else rows:
        if row.keys() != schema.keys():
            raise InputError(f"{path}: a row has columns {sorted(row)}, expected {sorted(schema)}\n{hint}")
    try:
        if isinstance(rows, pl.DataFrame):
            table = rows.select(list(schema))
            if table.schema != pl.Schema(schema):
                raise TypeError(f"columns are {dict(table.schema)}")
        else:
            table = pl.DataFrame(rows, schema=schema, strict=True, orient="row")
            check_integers(rows, schema)
    except (TypeError, pl.exceptions.PolarsError) as error:
        raise InputError(f"{path}: rows do not fit the schema {schema}: {error}\n{hint}") from error
    if table.select(key).is_duplicated().any():
        double = table.filter(table.select(key).is_duplicated()).select(key).row(0)
        raise InputError(f"{path}: {key} = {double} stands more than once\nHint: each {key} may stand only once.")
    with written_beside(path) as temporary:
        table.write_parquet(temporary, compression="zstd")
    return table.height


def check_integers(rows: list[dict[str, Any]], schema: Schema) -> None:
    """Raise TypeError for a fraction in an integer column, which polars would silently cut."""
    for column, kind in schema.items():
        if kind in (pl.Int32, pl.Int64):
            for row in rows:
                if isinstance(row[column], float) and not row[column].is_integer():
                    raise TypeError(f"{column} = {row[column]} is no integer")


def read_table(paths: Path | list[Path], schema: Schema) -> pl.DataFrame:
    """Read one table, or several parts of one in order.

    Raises InputError naming the file and the columns that differ from the schema.
    """
    parts = []
    for path in [paths] if isinstance(paths, Path) else paths:
        try:
            part = pl.read_parquet(path)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise InputError(f"{path}: {error}\nHint: delete it and run Snakemake, which makes it again.") from error
        if part.schema != pl.Schema(schema):
            raise InputError(
                f"{path}: columns are {dict(part.schema)}, expected {schema}\n"
                "Hint: an older version of the project wrote it; delete it and run Snakemake."
            )
        parts.append(part)
    return pl.concat(parts) if parts else pl.DataFrame(schema=schema)
