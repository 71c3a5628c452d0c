"""Fine-tuning on token rows with TRL's SFTTrainer, shared by SFT and RAFT."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from trl import SFTConfig

from scripts.lib.kinds.trainer import Finetuned
from scripts.lib.models import loading, lora, policy, rows, training
from scripts.lib.models.accumulation import IGNORED, TokenMeans
from scripts.lib.stage import artifact, contract, ranks
from scripts.lib.stage.errors import InputError


def row(ids: list[int], mask: list[int]) -> dict[str, list[int]]:
    """A training row: token ids, and labels that count in the loss only where the mask is 1."""
    return {"input_ids": ids, "labels": [token if counts else IGNORED for token, counts in zip(ids, mask)]}


def fine_tune(
    job: contract.Job[Finetuned],
    start: Path,
    tokenizer: Any,
    items: Any,
    rows_of: Callable[[Any], Iterable[rows.Row]],
    device: Any,
    packing: bool = False,
) -> int:
    """Train the policy in `start` on the rows that fit, save it, fill counts and metrics; return how many rows fit.

    `items` and `rows_of` are those of rows.dataset. With `packing` several rows share a block of `max_length` tokens,
    by best fit, and none attends to another: positions restart with each row, which confines attention to it.
    Raises InputError if no row fits.
    """
    longest = job.settings.max_length
    fitting, dropped = rows.dataset(job, items, rows_of, lambda row: len(row["input_ids"]) <= longest)
    if not len(fitting):
        raise InputError(f"all {dropped} rows are longer than max_length = {longest} tokens.\nHint: raise it.")
    kept = rows.packed(job, fitting, longest) if packing else fitting
    options = {"max_length": None, "padding_free": packing, **training.WITHOUT_ROUTER_LOSS}
    arguments = training.arguments(SFTConfig, job, len(kept), **options)
    model = loading.load_policy(start, **training.model_load_kwargs(job, device))
    trainer = TokenMeans(
        model=model,
        args=arguments,
        peft_config=lora.config(job.settings.lora, model, "CAUSAL_LM"),
        train_dataset=kept,
        processing_class=tokenizer,
    )
    job.metrics |= training.train(trainer, job)
    trained = training.gather_full_model(trainer, lambda: loading.load_policy(start, job.settings.dtype))
    if not ranks.first():
        return len(fitting)
    job.counts |= {"rows_in": len(items), "dropped_too_long": dropped, "rows_trained": len(fitting)}
    if packing:
        job.counts["blocks_trained"] = len(kept)
    artifact.write_model(job.output, lambda folder: policy.save(trained, tokenizer, folder, job.settings.dtype))
    return len(fitting)
