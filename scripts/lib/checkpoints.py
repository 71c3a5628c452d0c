"""Checkpoints of a training step: the trainer's own, saved by the clock, and taken up again only if whole.

They hold optimizer state in torch's format, so they stay in the step's work folder and are read from there only.
"""

import os
import shutil
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from scripts.lib import artifact, ranks
from scripts.lib.progress import progress

# Written last, after every other file of a checkpoint is on disk.
WHOLE = "whole"


class Keeper(TrainerCallback):
    """Has the trainer save a checkpoint every so many minutes, and marks it when it is whole."""

    def __init__(self, minutes: float) -> None:
        self.seconds = 60 * minutes
        self.saved = time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Ask for a checkpoint if it is time; after the last step the model itself is saved."""
        due = time.monotonic() - self.saved >= self.seconds
        if state.global_step < state.max_steps and ranks.agree(due):  # all processes save together, by one clock
            control.should_save = True
        return control

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Flush the files of the checkpoint that was just written, by all processes, then mark it."""
        self.saved = time.monotonic()
        ranks.wait()
        if not ranks.first():
            return
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        for file in folder.rglob("*"):
            descriptor = os.open(file, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
        artifact.write_text(folder / WHOLE, "")


def last_whole(folder: Path) -> str | None:
    """The newest whole checkpoint in a folder, if there is one; halves are removed."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rsplit("-", 1)[1]))
    whole = [path for path in found if (path / WHOLE).exists()]
    for path in set(found) - set(whole):
        shutil.rmtree(path)
    if not whole:
        return None
    progress(f"continuing from {whole[-1]}")
    return str(whole[-1])
