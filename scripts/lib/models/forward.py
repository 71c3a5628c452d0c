"""One batch through a model: log-probabilities of completions, rewards of conversations, and how batches are formed."""

from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase


def token_logprobs(
    model: PreTrainedModel, sequences: list[tuple[list[int], list[int]]], pad_id: int, device: torch.device
) -> list[float]:
    """Sum of log-probabilities in nats, at temperature 1, of each completion given its prompt.

    `sequences` are (prompt ids, completion ids), scored as one right-padded batch. The softmax is taken in float32,
    over the completion's positions only.
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
        targets = torch.tensor(completion, device=device)
        sums.append(span.gather(-1, targets[:, None]).double().sum().item() if completion else 0.0)
    return sums


def rewards(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sequences: list[list[int]], device: torch.device
) -> list[float]:
    """The reward of each whole conversation, one batch, right-padded.

    The head is applied in float32 whatever the model's dtype: bfloat16 has 8 bits of precision, so that different
    answers would get equal rewards.
    """
    padded = tokenizer.pad({"input_ids": sequences}, padding_side="right", return_tensors="pt").to(device)

    def in_float32(head: Any, given: Any, _: Any) -> torch.Tensor:
        bias = None if head.bias is None else head.bias.float()
        with torch.autocast(device.type, enabled=False):  # a model that was just trained brings its own autocast
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

    The longest batch comes first, so that a batch too big for memory fails at once and not after hours. A sequence
    longer than `padded_tokens` is a batch of its own.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    batches: list[list[int]] = []
    for i in order:
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= padded_tokens:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches
