"""A Bradley-Terry reward model with TRL's RewardTrainer: a scalar head on the last token (paper, section 2.1).

The padding token must differ from every end token: a classifier whose padding token is its eos reads the wrong
position and gives chosen and rejected the same score.
"""

import math
import sys
from collections.abc import Iterator
from typing import Any

from scripts.lib.data import gates, tables
from scripts.lib.data.schemas.preferences import PREFERENCES
from scripts.lib.kinds.rewards import TrainReward
from scripts.lib.stage import contract, ranks
from scripts.lib.stage.errors import InputError

PAD = "[PAD]"
CALIBRATION_BINS = 10
SIDES = ("chosen", "rejected")


def heldout_metrics(margins: list[float]) -> dict[str, float]:
    """Accuracy, loss and calibration from reward(chosen) − reward(rejected) on held-out pairs.

    Ties count half. The calibration error is the mean of |predicted − observed| over ten equal bins of the predicted
    win probability, weighted by pairs. Each pair counts from both sides, so that the bins span [0, 1].
    """
    count = len(margins)
    accuracy = sum(1.0 if margin > 0 else 0.5 if margin == 0 else 0.0 for margin in margins) / count
    loss = sum(max(-margin, 0) + math.log1p(math.exp(-abs(margin))) for margin in margins) / count
    bins: list[list[tuple[float, float]]] = [[] for _ in range(CALIBRATION_BINS)]
    for margin in margins:
        for sign, outcome in ((1, 1.0), (-1, 0.0)):
            probability = 1 / (1 + math.exp(-sign * max(-500.0, min(500.0, margin))))
            bins[min(int(probability * CALIBRATION_BINS), CALIBRATION_BINS - 1)].append((probability, outcome))
    error = sum(abs(sum(p - o for p, o in entries)) for entries in bins) / (2 * count)
    return {"heldout_accuracy": accuracy, "heldout_loss": loss, "heldout_calibration_error": error}


def run(job: contract.Job[TrainReward]) -> None:
    """Train on one preference table, evaluate on another."""
    from transformers import set_seed
    from trl import RewardConfig

    from scripts.lib.models import chat, forward, loading, lora, rows, training
    from scripts.lib.models.accumulation import RewardMeans
    from scripts.lib.stage import artifact

    settings = job.settings
    device = loading.prepare(job.runtime)
    loading.refuse_long_rows(job.input("init"), job.settings)
    tokenizer = loading.load_tokenizer(job.input("init"))
    add_pad = tokenizer.pad_token_id in (None, *chat.stop_ids(tokenizer))
    if add_pad:
        tokenizer.add_special_tokens({"pad_token": PAD})

    def fits(row: dict[str, list[int]]) -> bool:
        return all(len(row[f"{side}_ids"]) <= settings.max_length for side in SIDES)

    def rows_of(pairs: Any) -> Iterator[dict[str, list[int]]]:
        """Whole conversations as token ids, one row per pair, in the reward model's chat template."""
        for pair in pairs.iter_rows(named=True):
            prompt, *answers = chat.pair_ids(tokenizer, pair)
            yield {f"{side}_ids": prompt + answer for side, answer in zip(SIDES, answers)}

    table, heldout_table = (tables.read_table(job.input(name), PREFERENCES) for name in ("dataset", "heldout"))
    pairs, dropped = rows.dataset(job, table, rows_of, fits)
    heldout = list(filter(fits, rows_of(heldout_table))) if ranks.first() else []
    if not len(pairs) or (ranks.first() and not heldout):
        raise InputError(
            f"{len(pairs)} training and {len(heldout)} held-out pairs fit max_length = {settings.max_length}.\n"
            "Hint: raise it."
        )
    trainer_options = {
        "max_length": None,
        "disable_dropout": not lora.dropout(settings.lora),
        "center_rewards_coefficient": settings.center_rewards_coefficient,
    }

    def load(**kwargs: Any) -> Any:
        """The weights of `init` with a random head, drawn by the seed, and an embedding for the padding token."""
        set_seed(settings.seed)
        model = loading.load_reward(job.input("init"), **kwargs)
        if add_pad:
            model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        model.config.pad_token_id = tokenizer.pad_token_id
        return model

    arguments = training.arguments(RewardConfig, job, len(pairs), **trainer_options)
    model = load(**training.model_load_kwargs(job, device))
    trainer = RewardMeans(
        model=model,
        args=arguments,
        peft_config=lora.config(settings.lora, model, "SEQ_CLS"),
        train_dataset=pairs,
        processing_class=tokenizer,
    )
    job.metrics = training.train(trainer, job)
    trained = training.gather_full_model(trainer, lambda: load(dtype=settings.dtype))
    if not ranks.first():
        return
    trained.to(device).eval()
    sequences = [row[f"{side}_ids"] for row in heldout for side in SIDES]
    scores = [0.0] * len(sequences)
    for batch in forward.batches_by_length([len(ids) for ids in sequences], job.runtime.score_tokens):
        for i, value in zip(batch, forward.rewards(trained, tokenizer, [sequences[i] for i in batch], device)):
            scores[i] = value
    job.metrics |= heldout_metrics([scores[2 * i] - scores[2 * i + 1] for i in range(len(heldout))])
    warnings = gates.of_reward(job.metrics["heldout_accuracy"])
    gates.tell(job, warnings, job.runtime.stop_on_warnings, "runtime.stop_on_warnings")
    longer = sum(len(row["chosen_ids"]) > len(row["rejected_ids"]) for row in heldout) / len(heldout)
    job.metrics["heldout_longer_is_chosen"] = longer
    job.counts = {
        "pairs_in": table.height,
        "dropped_too_long": dropped,
        "pairs_trained": len(pairs),
        "heldout_in": heldout_table.height,
        "heldout_dropped_too_long": heldout_table.height - len(heldout),
        "heldout_scored": len(heldout),
    }
    artifact.write_model(job.output, lambda folder: loading.save(trained, tokenizer, folder, settings.dtype))
    job.note = f"{len(pairs)} pairs, held-out accuracy {job.metrics['heldout_accuracy']:.3f} on {len(heldout)}"


def main(argv: list[str] | None = None) -> int:
    """Command line; see `--help`."""
    return contract.execute("train_reward", run, TrainReward, ("init", "dataset", "heldout"), argv)


if __name__ == "__main__":
    sys.exit(main())
