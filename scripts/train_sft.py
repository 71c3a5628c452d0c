"""Supervised fine-tuning with TRL's SFTTrainer; only the assistant's tokens count in the loss."""

import sys
from collections.abc import Iterator
from typing import Any

from scripts.lib.data import tables
from scripts.lib.data.schemas.conversations import CONVERSATIONS
from scripts.lib.kinds.sft import TrainSft
from scripts.lib.stage import contract


def run(job: contract.Job[TrainSft]) -> None:
    """Fine-tune a base model on one table of conversations."""
    from scripts.lib.models import chat, loading, sft

    device = loading.prepare(job.runtime)
    loading.refuse_long_rows(job.input("base"), job.settings)
    tokenizer = loading.load_tokenizer(job.input("base"))
    conversations = tables.read_table(job.input("dataset"), CONVERSATIONS)

    def rows_of(part: Any) -> Iterator[dict[str, list[int]]]:
        for conversation in part.iter_rows(named=True):
            yield sft.row(*chat.conversation_ids(tokenizer, conversation["messages"]))

    packing = job.settings.packing
    trained = sft.fine_tune(job, job.input("base"), tokenizer, conversations, rows_of, device, packing)
    job.note = f"{trained} conversations, loss {job.metrics['first_loss']:.3f} → {job.metrics['last_loss']:.3f}"


def main(argv: list[str] | None = None) -> int:
    """Command line; see `--help`."""
    return contract.execute("train_sft", run, TrainSft, ("base", "dataset"), argv)


if __name__ == "__main__":
    sys.exit(main())
