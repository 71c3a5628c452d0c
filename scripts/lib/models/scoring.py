"""Scoring many token sequences in batches of similar length: what rewards and log-probabilities share."""

import time
from collections.abc import Callable
from typing import Any

from scripts.lib.models import forward
from scripts.lib.stage import contract
from scripts.lib.stage.chunks import Chunks


def score(job: contract.Job[Any], lengths: list[int], of_batch: Callable[[list[int]], list[float]]) -> list[float]:
    """One number per sequence, in order.

    `of_batch` scores the sequences at the given indices. A batch holds at most `runtime.score_tokens` padded tokens.
    Batches that an interrupted step finished are not scored again. The tokens and tokens/s go into the job's facts.
    """
    chunks = Chunks(job.work / "chunks", job.runtime.checkpoint_minutes)
    began, scored, tokens, speed = time.monotonic(), 0, 0, 0.0
    for batch in forward.batches_by_length(lengths, job.runtime.score_tokens):
        missing = [i for i in batch if i not in chunks.rows]
        if missing:
            chunks.add({i: {"value": value} for i, value in zip(missing, of_batch(missing), strict=True)})
            scored, tokens = scored + len(missing), tokens + sum(lengths[i] for i in missing)
            seconds = max(time.monotonic() - began, 1e-9)
            speed = tokens / seconds
            pace = f"{scored / seconds:,.1f} sequences/s  {speed:,.0f} tokens/s"
            contract.progress(f"{len(chunks.rows)}/{len(lengths)} sequences scored  {pace}")
    job.facts |= {"tokens": sum(lengths), "tokens_per_second": round(speed, 1)}
    return [chunks.rows[i]["value"] for i in range(len(lengths))]


def logprobs(
    job: contract.Job[Any], model: Any, tokenizer: Any, sequences: list[tuple[list[int], list[int]]], device: Any
) -> list[float]:
    """Log-probability in nats, at temperature 1, of each completion given its prompt; `sequences` are token ids."""
    pad = tokenizer.pad_token_id or 0  # masked, so any id will do
    lengths = [len(prompt) + len(completion) for prompt, completion in sequences]
    return score(job, lengths, lambda batch: forward.token_logprobs(model, [sequences[i] for i in batch], pad, device))
