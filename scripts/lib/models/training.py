"""What the training stages share: trainer arguments from settings, progress lines, and a run's metrics.

Trainers are TRL's. Rows come in as token ids, made by scripts/lib/models/chat.py, so no trainer tokenises, truncates or
appends anything.
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

from scripts.lib.data import gates
from scripts.lib.kinds.trainer import Finetuning, Lora, Trained
from scripts.lib.models import loading, lora, sharding
from scripts.lib.stage import artifact, checkpoints, contract, ranks, trackers
from scripts.lib.stage.errors import InputError

Arguments = TypeVar("Arguments", bound=TrainingArguments)
# A run logs LOGS_PER_RUN times or more, and at least every STEPS_BETWEEN_LOGS steps. Only at a log is the loss checked
# for NaN, and only then is a checkpoint saved.
LOGS_PER_RUN, STEPS_BETWEEN_LOGS = 20, 10
# A mixture of experts would add a loss that balances its experts over the rows of one forward pass, so the micro-batch
# would decide it.
WITHOUT_ROUTER_LOSS = {"router_aux_loss_coef": 0.0}


def arguments(kind: type[Arguments], job: contract.Job[Trained], rows: int, **options: Any) -> Arguments:
    """A trainer's arguments from a stage's settings; `options` are those of its own class.

    `batch_size` is the number of rows in one optimizer step, over all processes; the micro-batch is a runtime key,
    and gradient accumulation (accumulation.py) makes up the difference. Raises InputError if the batch does not divide
    evenly. Under ZeRO-3 a model that is loaded while these arguments exist is partitioned as it is loaded, so create
    them first.
    """
    settings, runtime = job.settings, job.runtime
    micro, accumulated = divided(settings.batch_size, runtime.train_micro_batch, ranks.count())
    if torch.cuda.device_count() > 1 and "RANK" not in os.environ and runtime.device != "cpu":
        raise InputError(
            f"{torch.cuda.device_count()} GPUs are visible to one process; batch_size would be multiplied by that.\n"
            "Hint: make only one visible with CUDA_VISIBLE_DEVICES, or launch with torchrun."
        )
    mode = runtime.sharding
    sharding.prepare(mode, ranks.on_gpu(runtime.device))
    steps = math.ceil(math.ceil(rows / settings.batch_size) * settings.epochs)
    disable_progress_bars()
    return kind(
        output_dir=str(job.work / "checkpoints"),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=accumulated,
        learning_rate=settings.learning_rate,
        num_train_epochs=settings.epochs,
        lr_scheduler_type=settings.schedule,
        warmup_steps=math.ceil(settings.warmup_ratio * steps),
        weight_decay=settings.weight_decay,
        adam_beta2=settings.adam_beta2,
        max_grad_norm=1.0,
        seed=settings.seed,
        data_seed=settings.seed,
        bf16=settings.dtype == "bfloat16",
        use_cpu=runtime.device == "cpu" or not torch.cuda.is_available(),
        activation_checkpointing=runtime.gradient_checkpointing,
        logging_steps=max(1, min(steps // LOGS_PER_RUN, STEPS_BETWEEN_LOGS)),
        logging_first_step=True,
        logging_nan_inf_filter=False,  # True would log a made-up number in place of a NaN
        disable_tqdm=True,
        report_to=trackers.report_to(job),
        project=trackers.PROJECT,
        run_name=artifact.stem(job.output).as_posix(),
        include_num_input_tokens_seen="non_padding",
        deepspeed=sharding.config(mode),
        save_strategy="no",  # scripts/lib/stage/checkpoints.py decides when to save
        save_total_limit=2,
        ddp_find_unused_parameters=False,
        **options,
    )


def divided(batch: int, micro: int, processes: int) -> tuple[int, int]:
    """(rows in one forward pass of one process, forward passes in one optimizer step) for a batch over all processes.

    The micro-batch is at most one process's share of the batch. Raises InputError if the batch is not divisible by
    both.
    """
    if batch % processes:
        raise InputError(
            f"batch_size = {batch} does not divide among {processes} processes.\n"
            "Hint: request a number of GPUs (`resources`) that divides it."
        )
    share = batch // processes
    micro = min(micro, share)
    if share % micro:
        raise InputError(
            f"runtime.train_micro_batch = {micro} does not divide batch_size = {batch}"
            f"{f' / {processes} processes' if processes > 1 else ''}.\n"
            "Hint: choose a divisor; gradient accumulation makes up the difference."
        )
    return micro, share // micro


def adapters_of(job: contract.Job[Trained]) -> Lora | None:
    """The adapters that a step trains; None if it trains all weights."""
    return job.settings.lora if isinstance(job.settings, Finetuning) else None


def held_in(job: contract.Job[Trained]) -> str:
    """The dtype in which a training step loads its weights.

    Training all weights without DeepSpeed needs float32. Frozen weights do not, and DeepSpeed keeps a float32 copy.
    """
    with_deepspeed = job.runtime.sharding != "data"
    return str(job.settings.dtype) if with_deepspeed or adapters_of(job) else "float32"


def model_load_kwargs(job: contract.Job[Trained], device: torch.device) -> dict[str, Any]:
    """Keyword arguments that load a training step's model: dtype, attention, quantization and, with that, device."""
    adapters = adapters_of(job)
    quantization = adapters.quantization if adapters else None
    kwargs = {"dtype": held_in(job), "attention": loading.attention(job, device), "quantization": quantization}
    return kwargs | ({"device": device} if quantization else {})


class Progress(TrainerCallback):
    """One line per log: step, loss, the trainer's other metrics in SHOWN, speed, and the time left."""

    SHOWN = ("loss", "rewards/margins", "rewards/accuracies", "accuracy", "grad_norm", "learning_rate")

    def __init__(self, check_first_loss: Callable[[float], None] | None, mode: str = "data") -> None:
        self.check_first_loss = check_first_loss
        # DeepSpeed skips a step whose gradient is not finite; without DeepSpeed such a step makes all weights NaN.
        self.finite = ("loss", "grad_norm") if mode == "data" else ("loss",)
        self.began, self.steps_before, self.tokens_before = time.monotonic(), 0, 0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start the clock; a step that resumes from a checkpoint is timed from there."""
        self.began = time.monotonic()
        self.steps_before, self.tokens_before = state.global_step, int(state.num_input_tokens_seen)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """Log the last step too: otherwise a NaN loss there would go unnoticed."""
        control.should_log |= state.global_step >= state.max_steps
        return control

    def pace(self, state: TrainerState) -> tuple[float, timedelta]:
        """(tokens/s over all processes since the clock started, without padding; time left)."""
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

        Raises InputError if the loss or the gradient norm is NaN or infinite.
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
    """Lets a stage inspect the model as it will be trained, in all processes, before the first step.

    The numbers that `look` returns become the log's first entry, which checkpoints keep.
    """

    def __init__(self, trainer: Any, look: Callable[[Any], dict[str, float]]) -> None:
        self.trainer, self.look = trainer, look

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Inspect the prepared model, unless training resumes from a checkpoint: then it was inspected before."""
        if state.global_step == 0:
            model = self.trainer.model_wrapped
            model.eval()
            state.log_history.append({"step": 0, **self.look(model)})
            model.train()


def train(
    trainer: Any,
    job: contract.Job[Trained],
    check_first_loss: Callable[[float], None] | None = None,
    look: Callable[[Any], dict[str, float]] | None = None,
) -> dict[str, float]:
    """Train and return the metrics for the manifest: steps, first and last loss, last logged rewards and accuracy.

    `look` inspects the model before the first step and returns more metrics. Resumes from the last complete checkpoint
    of an interrupted run of the same step. The tokens trained on and tokens/s go into the job's facts.
    Raises InputError if the loss or the gradient becomes NaN or infinite, if processes do not train together, or for
    warnings that are to stop the build.
    """
    for printer in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(printer)
    mode = job.runtime.sharding
    progress = Progress(check_first_loss, mode)
    trainer.add_callback(progress)
    if look:
        trainer.add_callback(Before(trainer, look))
    shared = checkpoints.sharing(mode)
    trainer.add_callback(checkpoints.Keeper(job.runtime.checkpoint_minutes, shared))
    if trainer.accelerator.num_processes != ranks.count():
        raise InputError(
            f"{ranks.count()} processes were started, but the trainer sees {trainer.accelerator.num_processes}: they "
            "would train separate copies, not one model.\nHint: start the step through scripts/lib/stage/launch.py."
        )
    sharding.check(trainer, mode)
    if mode == "data" and getattr(trainer.model, "peft_config", None):
        lora.in_float32(trainer.model)
    last = ranks.agree(checkpoints.last_whole(job.work / "checkpoints", shared) if ranks.first() else None)
    if last is None and ranks.first():
        shutil.rmtree(job.curves, ignore_errors=True)  # of an earlier build of the same artifact
    trainer.train(resume_from_checkpoint=last)
    tokens = int(trainer.state.num_input_tokens_seen)
    job.facts |= {"tokens": tokens, "tokens_per_second": round(progress.pace(trainer.state)[0], 1)}
    if deepspeed := sharding.config(mode):
        job.facts["deepspeed"] = deepspeed
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    first: dict[str, Any] = next((entry for entry in trainer.state.log_history if entry.get("step") == 0), {})
    before_training = {key: float(value) for key, value in first.items() if key != "step"}
    losses = [float(entry["loss"]) for entry in logs]
    norms = [float(entry["grad_norm"]) for entry in logs if "grad_norm" in entry]
    gates.tell(job, gates.of_training(losses, norms), job.runtime.stop_on_warnings, "runtime.stop_on_warnings")
    last_logged = {
        key: float(value) for key, value in logs[-1].items() if key.startswith("rewards/") or key == "accuracy"
    }
    return {
        "steps": trainer.state.global_step,
        "first_loss": losses[0],
        "last_loss": losses[-1],
        **before_training,
        **last_logged,
    }


def gather_full_model(trainer: Any, load: Callable[[], Any]) -> Any:
    """The trained model, plain and unpartitioned, in the first process; None elsewhere. All must call it together.

    `load` returns the model that training started from, unquantised and on the CPU; adapters are merged into it.
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
    whole = type(model).from_pretrained(None, config=model.config, state_dict=state, dtype=model.dtype)
    if model.can_generate():
        whole.generation_config = model.generation_config  # not loaded from a folder, it would have none
    return whole


def fitting(rows: list[dict[str, Any]], columns: tuple[str, ...], longest: int) -> tuple[list[dict[str, Any]], int]:
    """(rows whose token lists `columns` together have at most `longest` tokens, number of the others)."""
    kept = [row for row in rows if sum(len(row[column]) for column in columns) <= longest]
    return kept, len(rows) - len(kept)
