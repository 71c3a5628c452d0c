"""Fine-tuning on token rows by TRL's SFTTrainer: what SFT and RAFT share."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from trl import SFTConfig, SFTTrainer  # type: ignore[attr-defined]

from scripts.lib import adapters, artifact, models, ranks, stage, training
from scripts.lib.errors import InputError

IGNORED = -100


def row(ids: list[int], mask: list[int]) -> dict[str, list[int]]:
    """A training row: token ids, and labels that count only where the mask is 1."""
    return {"input_ids": ids, "labels": [token if counts else IGNORED for token, counts in zip(ids, mask)]}


def fine_tune(job: stage.Job, start: Path, tokenizer: Any, rows: Iterable[dict[str, list[int]]], device: Any) -> int:
    """Train the policy in `start` on the rows that fit, save it, fill counts and metrics; returns how many rows fit."""
    kept, dropped = training.dataset(rows, lambda row: len(row["input_ids"]) <= job.settings["max_length"])
    if not len(kept):
        raise InputError(
            f"all {dropped} rows are longer than max_length = {job.settings['max_length']} tokens.\nHint: raise it."
        )
    arguments = training.arguments(SFTConfig, job, len(kept), max_length=None)
    model = models.load_policy(start, **training.how_loaded(job, device))
    trainer = SFTTrainer(
        model=model,
        args=arguments,
        peft_config=adapters.config(job.settings["lora"], model, "CAUSAL_LM"),
        train_dataset=kept,
        processing_class=tokenizer,
    )
    job.metrics |= training.train(trainer, job)
    trained = training.whole(trainer, lambda: models.load_policy(start, job.settings["dtype"]))
    if not ranks.first():
        return len(kept)
    job.counts |= {"rows_in": len(kept) + dropped, "dropped_too_long": dropped, "rows_trained": len(kept)}
    artifact.write_model(job.output, lambda folder: models.save(trained, tokenizer, folder, job.settings["dtype"]))
    return len(kept)
