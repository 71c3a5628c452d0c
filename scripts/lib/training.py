"""What the training stages share: trainer arguments from settings, progress lines, and the numbers kept of a run.

Trainers are TRL's. Rows come in as token ids (scripts/lib/chat.py made them), so no trainer tokenises, truncates
or appends anything.
"""

import math
import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from datasets import disable_progress_bars
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from scripts.lib import checkpoints, ranks, stage
from scripts.lib.errors import InputError

Arguments = TypeVar("Arguments", bound=TrainingArguments)
LOGS_PER_RUN = 20


def arguments(kind: type[Arguments], job: stage.Job, rows: int, **own: Any) -> Arguments:
    """A trainer's arguments from a stage's settings.

    `batch_size` is the number of rows in one optimizer step, over all processes; the micro-batch is a runtime key,
    and what is missing is made up for by gradient accumulation. Raises InputError if that does not come out even.
    """
    settings, runtime = job.settings, job.runtime
    micro, accumulated = divided(settings["batch_size"], runtime["train_micro_batch"], ranks.count())
    if torch.cuda.device_count() > 1 and "RANK" not in os.environ and runtime["device"] != "cpu":
        raise InputError(
            f"{torch.cuda.device_count()} GPUs are visible to one process; batch_size would be multiplied by that.\n"
            "Hint: make one visible with CUDA_VISIBLE_DEVICES, or launch with torchrun."
        )
    steps = math.ceil(math.ceil(rows / settings["batch_size"]) * settings["epochs"])
    disable_progress_bars()
    return kind(
        output_dir=str(job.work / "checkpoints"),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=accumulated,
        learning_rate=settings["learning_rate"],
        num_train_epochs=settings["epochs"],
        lr_scheduler_type=settings["schedule"],
        warmup_steps=math.ceil(settings["warmup_ratio"] * steps),
        weight_decay=settings["weight_decay"],
        adam_beta2=settings["adam_beta2"],
        max_grad_norm=1.0,
        seed=settings["seed"],
        data_seed=settings["seed"],
        bf16=settings["dtype"] == "bfloat16",
        use_cpu=runtime["device"] == "cpu" or not torch.cuda.is_available(),
        activation_checkpointing=runtime["gradient_checkpointing"],
        logging_steps=max(1, steps // LOGS_PER_RUN),
        logging_first_step=True,
        disable_tqdm=True,
        report_to="none",
        save_strategy="no",  # scripts/lib/checkpoints.py says when
        save_total_limit=2,
        ddp_find_unused_parameters=False,
        **own,
    )


def divided(batch: int, micro: int, processes: int) -> tuple[int, int]:
    """(rows in one forward pass of one process, forward passes in one optimizer step) for a batch over all processes.

    The micro-batch is at most what falls to one process. Raises InputError if the batch does not divide by both.
    """
    if batch % processes:
        raise InputError(
            f"batch_size = {batch} does not divide among {processes} processes.\n"
            "Hint: ask for a number of GPUs (`resources`) that divides it."
        )
    share = batch // processes
    micro = min(micro, share)
    if share % micro:
        raise InputError(
            f"runtime.train_micro_batch = {micro} does not divide batch_size = {batch}"
            f"{f' / {processes} processes' if processes > 1 else ''}.\n"
            "Hint: choose a divisor; what is missing is made up for by gradient accumulation."
        )
    return micro, share // micro


def rows_repeated(rows: int, args: TrainingArguments) -> int:
    """Rows that an epoch takes twice, so that all processes have equally many; accelerate takes its first ones."""
    round_of_all = args.per_device_train_batch_size * ranks.count()
    return -rows % round_of_all


class Progress(TrainerCallback):
    """One line per log: step, loss, and what the trainer reports beside them."""

    SHOWN = ("loss", "rewards/margins", "rewards/accuracies", "accuracy", "grad_norm", "learning_rate")

    def __init__(self, check_first_loss: Callable[[float], None] | None) -> None:
        self.check_first_loss = check_first_loss

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write the line to the stage's log; hand the first step's loss to the stage's own check, if it has one."""
        if self.check_first_loss and state.global_step == 1 and logs and "loss" in logs:
            self.check_first_loss(float(logs["loss"]))
        shown = [f"{key} {float(logs[key]):.4g}" for key in self.SHOWN if logs and key in logs]
        if shown:
            stage.progress(f"step {state.global_step}/{state.max_steps}  " + "  ".join(shown))


def train(trainer: Any, job: stage.Job, check_first_loss: Callable[[float], None] | None = None) -> dict[str, float]:
    """Train and return the numbers that a manifest keeps: steps, first and last loss, the last of what was logged.

    Continues from the last whole checkpoint of an interrupted run of the same step.
    Raises InputError if the loss stops being a number.
    """
    for printer in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(printer)
    trainer.add_callback(Progress(check_first_loss))
    trainer.add_callback(checkpoints.Keeper(job.runtime["checkpoint_minutes"]))
    if trainer.accelerator.num_processes != ranks.count():
        raise InputError(
            f"{ranks.count()} processes were started, the trainer knows of {trainer.accelerator.num_processes}: they "
            "would train copies, not one model.\nHint: start the step through scripts/lib/launch.py."
        )
    folder = job.work / "checkpoints"
    trainer.train(resume_from_checkpoint=ranks.agree(checkpoints.last_whole(folder) if ranks.first() else None))
    repeated = {"rows_repeated": rows_repeated(len(trainer.train_dataset), trainer.args)} if ranks.count() > 1 else {}
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    losses = [float(entry["loss"]) for entry in logs]
    if not losses or not all(math.isfinite(loss) for loss in losses):
        raise InputError(f"training diverged: losses {losses}\nHint: lower the learning rate.")
    kept = {key: float(value) for key, value in logs[-1].items() if key.startswith("rewards/") or key == "accuracy"}
    return {"steps": trainer.state.global_step, "first_loss": losses[0], "last_loss": losses[-1], **kept, **repeated}


def fitting(rows: list[dict[str, Any]], columns: tuple[str, ...], longest: int) -> tuple[list[dict[str, Any]], int]:
    """(rows whose token lists `columns` together have at most `longest` tokens, number of the others)."""
    kept = [row for row in rows if sum(len(row[column]) for column in columns) <= longest]
    return kept, len(rows) - len(kept)
