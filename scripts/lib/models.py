"""Loading and saving models: verified when read, safetensors only, no remote code, never from a hub."""

from pathlib import Path
from typing import Any

from scripts.lib import ranks
from scripts.lib.stage import offline

offline()

import torch  # noqa: E402
from transformers import (  # noqa: E402
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)


def prepare(runtime: dict[str, Any]) -> torch.device:
    """Set the math threads and return the device that the runtime keys ask for."""
    if runtime.get("torch_threads"):
        torch.set_num_threads(runtime["torch_threads"])
    wanted = runtime.get("device", "auto")
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(wanted, ranks.local()) if wanted == "cuda" else torch.device(wanted)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer beside a model's weights, with its chat template."""
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return tokenizer


def load_policy(folder: Path, dtype: str, device: torch.device | None = None) -> PreTrainedModel:
    """A causal language model; the stage has verified its digests already (scripts/lib/stage.py)."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), local_files_only=True, use_safetensors=True
    )
    if device is not None:
        model.to(device)  # type: ignore[arg-type]
    return model


def load_reward(folder: Path, dtype: str) -> PreTrainedModel:
    """A sequence classifier with one label: the scalar head on the last token."""
    model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=getattr(torch, dtype), local_files_only=True, use_safetensors=True, num_labels=1
    )
    return model


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, dtype: str) -> None:
    """Weights, configuration, tokenizer and chat template. Not Trainer.save_model, which adds a pickle."""
    model.config.use_cache = True
    model.to(getattr(torch, dtype)).save_pretrained(folder)  # type: ignore[arg-type]
    tokenizer.save_pretrained(folder)


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
    """The reward of each whole conversation, one batch, right-padded."""
    padded = tokenizer.pad({"input_ids": sequences}, padding_side="right", return_tensors="pt").to(device)
    with torch.no_grad():
        scores = model(input_ids=padded["input_ids"], attention_mask=padded["attention_mask"]).logits[:, 0]
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


def generation_config(folder: Path) -> GenerationConfig | None:
    """The model's own list of stop tokens, if it ships one."""
    if not (folder / "generation_config.json").is_file():
        return None
    return GenerationConfig.from_pretrained(folder, local_files_only=True)
