"""Scoring many token sequences in batches of similar length: what rewards and log-probabilities share."""

from collections.abc import Callable
from typing import Any

from scripts.lib import stage
from scripts.lib.chunks import Chunks
from scripts.lib.models import batches_by_length, token_logprobs


def score(job: stage.Job, lengths: list[int], of_batch: Callable[[list[int]], list[float]]) -> list[float]:
    """One number per sequence, in order.

    `of_batch` scores the sequences at some indices. A batch holds at most `runtime.score_tokens` padded tokens.
    Batches that an interrupted step has finished are not scored again.
    """
    chunks = Chunks(job.work / "chunks", job.runtime["checkpoint_minutes"])
    for batch in batches_by_length(lengths, job.runtime["score_tokens"]):
        missing = [i for i in batch if i not in chunks.rows]
        if missing:
            chunks.add({i: {"value": value} for i, value in zip(missing, of_batch(missing), strict=True)})
            stage.progress(f"{len(chunks.rows)}/{len(lengths)} sequences scored")
    return [chunks.rows[i]["value"] for i in range(len(lengths))]


def logprobs(
    job: stage.Job, model: Any, tokenizer: Any, sequences: list[tuple[list[int], list[int]]], device: Any
) -> list[float]:
    """Log-probability in nats, at temperature 1, of each completion given its prompt; `sequences` as token ids."""
    pad = tokenizer.pad_token_id or 0  # masked, so any id will do
    lengths = [len(prompt) + len(completion) for prompt, completion in sequences]
    return score(job, lengths, lambda batch: token_logprobs(model, [sequences[i] for i in batch], pad, device))
