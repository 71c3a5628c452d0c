"""Scoring many token sequences in batches of similar length: what rewards and log-probabilities share."""

import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from scripts.lib.stage import contract
from scripts.lib.stage.chunks import Chunks


def score(job: contract.Job, lengths: list[int], of_batch: Callable[[list[int]], list[float]]) -> list[float]:
    """One number per sequence, in order.

    `of_batch` scores the sequences at some indices. A batch holds at most `runtime.score_tokens` padded tokens.
    Batches that an interrupted step has finished are not scored again. Tokens and their speed go into the job's facts.
    """
    chunks = Chunks(job.work / "chunks", job.runtime["checkpoint_minutes"])
    began, scored, tokens, speed = time.monotonic(), 0, 0, 0.0
    for batch in batches_by_length(lengths, job.runtime["score_tokens"]):
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
    job: contract.Job, model: Any, tokenizer: Any, sequences: list[tuple[list[int], list[int]]], device: Any
) -> list[float]:
    """Log-probability in nats, at temperature 1, of each completion given its prompt; `sequences` as token ids."""
    pad = tokenizer.pad_token_id or 0  # masked, so any id will do
    lengths = [len(prompt) + len(completion) for prompt, completion in sequences]
    return score(job, lengths, lambda batch: token_logprobs(model, [sequences[i] for i in batch], pad, device))


def token_logprobs(
    model: PreTrainedModel, sequences: list[tuple[list[int], list[int]]], pad_id: int, device: torch.device
) -> list[float]:
    """Sum of log-probabilities in nats, at temperature 1, of each completion given its prompt.

    `sequences` are (prompt ids, completion ids), one batch. Right-padded; only the completion's positions go
    through the language-model head's softmax, in float32.
    """
    longest = max(len(p) + len(c) for p, c in sequences)
    ids = torch.full((len(sequences), longest), pad_id)
    attention = torch.zeros_like(ids)
    for row, (prompt, completion) in enumerate(sequences):
        whole = torch.tensor(prompt + completion)
        ids[row, : len(whole)] = whole
        attention[row, : len(whole)] = 1
    with torch.no_grad():
        logits = model(input_ids=ids.to(device), attention_mask=attention.to(device), use_cache=False).logits
    sums = []
    for row, (prompt, completion) in enumerate(sequences):
        span = logits[row, len(prompt) - 1 : len(prompt) + len(completion) - 1].float().log_softmax(-1)
        wanted = torch.tensor(completion, device=device)
        sums.append(span.gather(-1, wanted[:, None]).double().sum().item() if completion else 0.0)
    return sums


def rewards(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sequences: list[list[int]], device: torch.device
) -> list[float]:
    """The reward of each whole conversation, one batch, right-padded.

    The head is applied in float32 whatever the model's format: in bfloat16, of 8 bits, answers would share one.
    """
    padded = tokenizer.pad({"input_ids": sequences}, padding_side="right", return_tensors="pt").to(device)

    def in_float32(head: Any, given: Any, _: Any) -> torch.Tensor:
        bias = None if head.bias is None else head.bias.float()
        with torch.autocast(device.type, enabled=False):  # a model that was just trained brings its own
            return torch.nn.functional.linear(given[0].float(), head.weight.float(), bias)

    hook = model.get_submodule("score").register_forward_hook(in_float32)
    try:
        with torch.no_grad():
            scores = model(input_ids=padded["input_ids"], attention_mask=padded["attention_mask"]).logits[:, 0]
    finally:
        hook.remove()
    return scores.double().tolist()


def batches_by_length(lengths: list[int], padded_tokens: int) -> list[list[int]]:
    """Indices in batches of similar length, longest first, each of at most `padded_tokens` after padding.

    The longest batch comes first, so that a batch too big for memory fails at once and not after hours.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    batches: list[list[int]] = []
    for i in order:
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= padded_tokens:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches
