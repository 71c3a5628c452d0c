"""Supervised fine-tuning by TRL's SFTTrainer; only the assistant's own tokens count in the loss."""

import sys

from scripts.lib import schemas, stage


def run(job: stage.Job) -> None:
    """Fine-tune a base model on one table of conversations."""
    from scripts.lib import chat, models, sft

    device = models.prepare(job.runtime)
    tokenizer = models.load_tokenizer(job.input("base"))
    conversations = schemas.read_table(job.input("dataset"), schemas.CONVERSATIONS).iter_rows(named=True)
    rows = (sft.row(*chat.conversation_ids(tokenizer, conversation["messages"])) for conversation in conversations)
    trained = sft.fine_tune(job, job.input("base"), tokenizer, rows, device)
    job.note = f"{trained} conversations, loss {job.metrics['first_loss']:.3f} → {job.metrics['last_loss']:.3f}"


def main(argv: list[str] | None = None) -> int:
    """Command line; see `--help`."""
    return stage.execute("train_sft", run, ("base", "dataset"), argv)


if __name__ == "__main__":
    sys.exit(main())
