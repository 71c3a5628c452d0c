"""What the training stages share: trainer arguments from settings, progress lines, and the numbers kept of a run.

Trainers are TRL's. Rows come in as token ids (scripts/lib/models/chat.py made them), so no trainer tokenises, truncates
or appends anything.
"""

import math
import os
import shutil
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
from datasets import disable_progress_bars
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from scripts.lib.models import loading, lora, sharding
from scripts.lib.stage import artifact, checkpoints, contract, ranks, trackers
from scripts.lib.stage.errors import InputError

Arguments = TypeVar("Arguments", bound=TrainingArguments)
# Steps from log to log; between logs nobody looks whether the loss is a number, and no checkpoint is saved.
LOGS_PER_RUN, STEPS_BETWEEN_LOGS = 20, 10


def arguments(kind: type[Arguments], job: contract.Job, rows: int, **own: Any) -> Arguments:
    """A trainer's arguments from a stage's settings.

    `batch_size` is the number of rows in one optimizer step, over all processes; the micro-batch is a runtime key,
    and what is missing is made up for by gradient accumulation. Raises InputError if that does not come out even.
    Under ZeRO-3 a model that is loaded while these arguments live is shared out over the processes at once, so make
    them first.
    """
    settings, runtime = job.settings, job.runtime
    micro, accumulated = divided(settings["batch_size"], runtime["train_micro_batch"], ranks.count())
    if torch.cuda.device_count() > 1 and "RANK" not in os.environ and runtime["device"] != "cpu":
        raise InputError(
            f"{torch.cuda.device_count()} GPUs are visible to one process; batch_size would be multiplied by that.\n"
            "Hint: make one visible with CUDA_VISIBLE_DEVICES, or launch with torchrun."
        )
    strategy = job.runtime.get("strategy", "data")
    sharding.prepare(strategy, ranks.on_gpu(runtime["device"]))
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
        logging_steps=max(1, min(steps // LOGS_PER_RUN, STEPS_BETWEEN_LOGS)),
        logging_first_step=True,
        logging_nan_inf_filter=False,  # it would put a made-up number in the place of a loss that is none
        disable_tqdm=True,
        report_to=trackers.report_to(job),
        project=trackers.PROJECT,
        run_name=artifact.stem(job.output).as_posix(),
        include_num_input_tokens_seen="non_padding",
        deepspeed=sharding.config(strategy),
        save_strategy="no",  # scripts/lib/stage/checkpoints.py says when
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


def held_in(job: contract.Job) -> str:
    """The number format in which a training step loads its weights.

    Plain training of all weights needs float32; frozen weights do not, and DeepSpeed keeps a float32 copy by itself.
    """
    spread = job.runtime.get("strategy", "data") != "data"
    return str(job.settings["dtype"]) if spread or job.settings.get("lora") else "float32"


def model_load_kwargs(job: contract.Job, device: torch.device) -> dict[str, Any]:
    """What a training step's model is loaded with: number format, attention kernel, quantisation and its device."""
    quantization = (job.settings.get("lora") or {}).get("quantization")
    own = {"dtype": held_in(job), "attention": loading.attention(job, device), "quantization": quantization}
    return own | ({"device": device} if quantization else {})


class Progress(TrainerCallback):
    """One line per log: step, loss, what the trainer reports beside them, speed, and the time left."""

    SHOWN = ("loss", "rewards/margins", "rewards/accuracies", "accuracy", "grad_norm", "learning_rate")

    def __init__(self, check_first_loss: Callable[[float], None] | None, strategy: str = "data") -> None:
        self.check_first_loss = check_first_loss
        # DeepSpeed leaves out a step whose gradient is no number; elsewhere all weights are none after it.
        self.finite = ("loss", "grad_norm") if strategy == "data" else ("loss",)
        self.began, self.steps_before, self.tokens_before = time.monotonic(), 0, 0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start the clock; a step that goes on from a checkpoint is timed from there."""
        self.began = time.monotonic()
        self.steps_before, self.tokens_before = state.global_step, int(state.num_input_tokens_seen)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """Have the last step logged too, or a loss that is no number there would be seen by nobody."""
        control.should_log |= state.global_step >= state.max_steps
        return control

    def pace(self, state: TrainerState) -> tuple[float, timedelta]:
        """(tokens per second over all processes since the clock started, padding not counted; time left)."""
        seconds = max(time.monotonic() - self.began, 1e-9)
        steps = max(1, state.global_step - self.steps_before)
        left = timedelta(seconds=round(seconds / steps * (state.max_steps - state.global_step)))
        return (state.num_input_tokens_seen - self.tokens_before) / seconds, left

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write the line to the stage's log; hand the first step's loss to the stage's own check, if it has one.

        Raises InputError where the loss or its gradient is no number.
        """
        for key in self.finite:
            if logs and not math.isfinite(value := float(logs.get(key, 0))):
                raise InputError(
                    f"training diverged: {key} is {value} at step {state.global_step} of {state.max_steps}.\n"
                    "Hint: lower the learning rate, or lengthen the warm-up."
                )
        if self.check_first_loss and state.global_step == 1 and logs and "loss" in logs:
            self.check_first_loss(float(logs["loss"]))
        shown = [f"{key} {float(logs[key]):.4g}" for key in self.SHOWN if logs and key in logs]
        if shown:
            speed, left = self.pace(state)
            shown += [f"{speed:,.0f} tokens/s", f"{left} left"]
            contract.progress(f"step {state.global_step}/{state.max_steps}  " + "  ".join(shown))


class Before(TrainerCallback):
    """Has a stage look at the model as it will be trained, by all processes, before the first step of all.

    The numbers that it gives become the log's first entry, which checkpoints keep.
    """

    def __init__(self, trainer: Any, look: Callable[[Any], dict[str, float]]) -> None:
        self.trainer, self.look = trainer, look

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Show the prepared model; what goes on from a checkpoint has been seen before."""
        if state.global_step == 0:
            model = self.trainer.model_wrapped
            model.eval()
            state.log_history.append({"step": 0, **self.look(model)})
            model.train()


def train(
    trainer: Any,
    job: contract.Job,
    check_first_loss: Callable[[float], None] | None = None,
    look: Callable[[Any], dict[str, float]] | None = None,
) -> dict[str, float]:
    """Train and return the numbers that a manifest keeps: steps, first and last loss, the last of what was logged.

    `look` sees the model before the first step and gives more such numbers. Continues from the last whole checkpoint of
    an interrupted run of the same step. Tokens trained on and their speed go into the job's facts.
    Raises InputError if the loss or the gradient stops being a number.
    """
    for printer in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(printer)
    strategy = job.runtime.get("strategy", "data")
    watch = Progress(check_first_loss, strategy)
    trainer.add_callback(watch)
    if look:
        trainer.add_callback(Before(trainer, look))
    shared = checkpoints.sharing(strategy)
    trainer.add_callback(checkpoints.Keeper(job.runtime["checkpoint_minutes"], shared))
    if trainer.accelerator.num_processes != ranks.count():
        raise InputError(
            f"{ranks.count()} processes were started, the trainer knows of {trainer.accelerator.num_processes}: they "
            "would train copies, not one model.\nHint: start the step through scripts/lib/stage/launch.py."
        )
    sharding.check(trainer, strategy)
    if strategy == "data" and getattr(trainer.model, "peft_config", None):
        lora.in_float32(trainer.model)
    last = ranks.agree(checkpoints.last_whole(job.work / "checkpoints", shared) if ranks.first() else None)
    if last is None and ranks.first():
        shutil.rmtree(job.curves, ignore_errors=True)  # of an earlier making of the same artifact
    trainer.train(resume_from_checkpoint=last)
    tokens = int(trainer.state.num_input_tokens_seen)
    job.facts |= {"tokens": tokens, "tokens_per_second": round(watch.pace(trainer.state)[0], 1)}
    if spread := sharding.config(strategy):
        job.facts["deepspeed"] = spread
    repeated = {"rows_repeated": rows_repeated(len(trainer.train_dataset), trainer.args)} if ranks.count() > 1 else {}
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    first: dict[str, Any] = next((entry for entry in trainer.state.log_history if entry.get("step") == 0), {})
    seen = {key: float(value) for key, value in first.items() if key != "step"}
    losses = [float(entry["loss"]) for entry in logs]
    kept = {key: float(value) for key, value in logs[-1].items() if key.startswith("rewards/") or key == "accuracy"}
    return {
        "steps": trainer.state.global_step,
        "first_loss": losses[0],
        "last_loss": losses[-1],
        **seen,
        **kept,
        **repeated,
    }


def gather_full_model(trainer: Any, load: Callable[[], Any]) -> Any:
    """The trained model, whole and plain, in the first process; None in the others. All must call it together.

    `load` gives the model that training started from, unquantised and on the CPU, for adapters to be merged into.
    """
    model, adapted = trainer.model, bool(getattr(trainer.model, "peft_config", None))
    state = sharding.gathered(trainer, trainable_only=adapted)
    if not ranks.first():
        return None
    sharding.forget()
    if adapted:
        return lora.merged(model, state, load())
    if state is None:
        return model
    found = type(model).from_pretrained(None, config=model.config, state_dict=state, dtype=model.dtype)
    if model.can_generate():
        found.generation_config = model.generation_config  # from no folder it has none of its own
    return found


def fitting(rows: list[dict[str, Any]], columns: tuple[str, ...], longest: int) -> tuple[list[dict[str, Any]], int]:
    """(rows whose token lists `columns` together have at most `longest` tokens, number of the others)."""
    kept = [row for row in rows if sum(len(row[column]) for column in columns) <= longest]
    return kept, len(rows) - len(kept)
