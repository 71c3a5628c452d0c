"""Trainers whose optimizer step is that of one whole batch, however many forward passes and processes it is made in.

TRL's DPOTrainer and RewardTrainer weigh the forward passes of a step alike: the last one of an epoch, which may hold
fewer rows, counts too much, and so do the answers in it by the token where a loss is a mean over tokens. Here each pass
counts by its share of the step. Processes take equally many rows, so accelerate repeats an epoch's first rows at its
end; here a repeated row has no weight. What compares the rows of a batch with each other cannot be made up for:
WHOLE_BATCH in scripts/lib/kinds/runs.py names those losses.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from transformers import Trainer
from trl import RewardTrainer, SFTTrainer

IGNORED = -100  # a label that does not count in the loss

Batch = dict[str, Any]


class LastRows:
    """A data collator that remembers the rows of the batch that it made last."""

    def __init__(self, collate: Any) -> None:
        self.collate = collate
        self.rows: list[Batch] = []

    def __call__(self, rows: list[Batch]) -> Batch:
        """The batch of some rows."""
        self.rows = rows
        return self.collate(rows)  # type: ignore[no-any-return]


class Unrepeated(Trainer):
    """Tells which rows at the end of an epoch are repeated so that all processes get equally many."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.data_collator: Any = LastRows(self.data_collator)

    def new_rows(self) -> tuple[int, int] | None:
        """(rows of the epoch's last batch here, the most of them in any process) that are no repeats.

        None unless the batch fetched last is the epoch's last one and some process has repeats in it. Row i of process
        p is row p · (rows at once) + i of those that all processes take together, as accelerate shares them out.
        """
        here, processes = self.args.per_device_train_batch_size, self.accelerator.num_processes
        rest = len(self.train_dataset) % (here * processes)  # type: ignore[arg-type]
        if processes == 1 or not rest or not self.accelerator.gradient_state.end_of_dataloader:
            return None
        return min(max(rest - here * self.accelerator.process_index, 0), here), min(rest, here)


class TokenMeans(Unrepeated, SFTTrainer):  # type: ignore[misc]
    """SFTTrainer, whose loss is a mean over the tokens of the whole step already; repeated rows have no labels."""

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: Any
    ) -> tuple[list[Any], Any]:
        """The batches of a step, and the number of tokens that its loss is a mean over."""
        batches, tokens = super().get_batch_samples(epoch_iterator, num_batches, device)
        if new := self.new_rows():
            rows = self.data_collator.rows
            repeats = [row | {"labels": [IGNORED] * len(row["labels"])} for row in rows[new[0] :]]
            batches[-1] = self.data_collator.collate(rows[: new[0]] + repeats)
            tokens = self._get_num_items_in_batch(batches, device)
        return batches, tokens


class RowMeans(Unrepeated):
    """A trainer whose loss is a mean over the rows of a batch; `sizes` says what else it is a mean over."""

    loss_is_scaled_for_ga = True
    _metrics: dict[str, dict[str, list[float]]]  # TRL's own, with a value for each pass since the last log
    ragged: tuple[Batch, list[Batch], int] | None = None  # a step's last batch, its rows one by one, and how many count

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.passes: list[float] = []  # the shares of the passes since the last log

    def sizes(self, batch: Batch) -> list[int]:
        """What the parts of the loss are means over: the batch's rows, and more where a subclass says so."""
        return [len(batch["input_ids"]) // 2]

    def shares(self, batch: Batch, totals: torch.Tensor) -> list[float]:
        """A batch's shares of the step's sizes; times the processes, because their gradients are averaged."""
        sizes = torch.tensor(self.sizes(batch), dtype=totals.dtype)
        shares: list[float] = (sizes * self.accelerator.num_processes / totals.cpu()).tolist()
        self.passes.append(shares[0])
        return shares

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log TRL's metrics with each pass weighed by its share of the rows, as it is in the loss."""
        metrics, total = self._metrics["train"], sum(self.passes)
        for name, values in metrics.items():
            if total and len(values) == len(self.passes):
                metrics[name] = [sum(share * value for share, value in zip(self.passes, values)) / total]
        self.passes.clear()
        super().log(logs, start_time)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: Any
    ) -> tuple[list[Any], Any]:
        """The batches of a step, and what the parts of its loss are means over, in all processes together."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        counted, self.ragged = batches, None
        if new := self.new_rows():
            # Row by row, because TRL gathers metrics, for which all processes must pass equally many rows at once.
            rows = [self.data_collator.collate([row]) for row in self.data_collator.rows[: new[1]]]
            counted, self.ragged = batches[:-1] + rows[: new[0]], (batches[-1], rows, new[0])
        sizes = [self.sizes(batch) for batch in counted] or [[0] * len(self.sizes(batches[0]))]
        totals = torch.tensor(sizes, dtype=torch.float64, device=device).sum(0)
        return batches, self.accelerator.gather(totals[None]).sum(0)

    def training_step(self, model: Any, inputs: Batch, num_items_in_batch: Any = None) -> torch.Tensor:
        """One forward and backward pass; for a batch with repeats as many as it has rows that are none."""
        if self.ragged is None or inputs is not self.ragged[0]:
            return super().training_step(model, inputs, num_items_in_batch)
        _, rows, new = self.ragged
        losses = []
        for i, row in enumerate(rows):
            self.accelerator.gradient_state._set_sync_gradients(i + 1 == len(rows))
            totals = num_items_in_batch if i < new else num_items_in_batch * math.inf  # a repeat has no share
            losses.append(super().training_step(model, row, totals))
        return torch.stack(losses).sum()


class RewardMeans(RowMeans, RewardTrainer):  # type: ignore[misc]
    """RewardTrainer: all of its loss is a mean over pairs."""

    def compute_loss(
        self, model: Any, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The batch's part of the step's loss."""
        (share,) = self.shares(inputs, num_items_in_batch)
        return super().compute_loss(model, inputs) * share  # type: ignore[no-untyped-call]
