"""Checkpoints of a training step: the trainer's own, saved by the clock, and taken up again only if whole.

They hold optimizer state in torch's format, so they stay in the step's work folder and are read from there only.
"""

import os
import shutil
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from scripts.lib.stage import artifact, ranks
from scripts.lib.stage.progress import progress

# Written last, after every other file of a checkpoint is on disk; says how the model was shared.
WHOLE = "whole"


def sharing(strategy: str) -> dict[str, Any]:
    """How a step shares its model; a checkpoint has files of each process, and goes on only where this is the same."""
    return {"strategy": strategy, "processes": ranks.count()}


class Keeper(TrainerCallback):
    """Has the trainer save a checkpoint every so many minutes, and marks it with its sharing when it is whole."""

    def __init__(self, minutes: float, shared: dict[str, Any]) -> None:
        self.seconds, self.shared = 60 * minutes, shared
        self.saved = time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Ask for a checkpoint if it is time; after the last step the model itself is saved.

        Only in steps that are logged: the log comes first and ends a step that has diverged, so no checkpoint has.
        """
        due = time.monotonic() - self.saved >= self.seconds
        # All processes save together, by one clock.
        if control.should_log and state.global_step < state.max_steps and ranks.agree(due):
            control.should_save = True
        return control

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Flush the files of the checkpoint that was just written, by all processes, then mark it."""
        self.saved = time.monotonic()
        ranks.wait()
        if ranks.first():
            folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
            for file in folder.rglob("*"):
                descriptor = os.open(file, os.O_RDONLY)
                os.fsync(descriptor)
                os.close(descriptor)
            artifact.write_json(folder / WHOLE, self.shared)
        # A hundred GB may take longer than the ten minutes that DeepSpeed's own groups wait for a process.
        ranks.wait()


def last_whole(folder: Path, shared: dict[str, Any]) -> str | None:
    """The newest whole checkpoint in a folder that was shared like this, if there is one; all others are removed."""
    kept = []
    for path in sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rsplit("-", 1)[1])):
        saved = artifact.read_json(path / WHOLE) if (path / WHOLE).exists() else None
        if saved == shared:
            kept.append(path)
            continue
        if saved is not None:
            progress(f"{path}: saved under {_in_words(saved)}, this step runs under {_in_words(shared)}; thrown away")
        shutil.rmtree(path)
    if not kept:
        return None
    progress(f"continuing from {kept[-1]}")
    return str(kept[-1])


def _in_words(shared: dict[str, Any]) -> str:
    return ", ".join(f"{key}: {value}" for key, value in shared.items())
