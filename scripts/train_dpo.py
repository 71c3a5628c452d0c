"""One DPO step of a run by TRL's DPOTrainer, with reference log-probabilities that were computed beforehand.

No reference model is loaded. Before the first step a gate compares the policy, as it is about to be trained, with the
reference: where they are the same weights, every implicit reward must be zero, and the sigmoid loss ln 2, up to
rounding. In bfloat16 that is not the same for both: the reference was computed with bfloat16 weights, while a policy of
which all is trained without DeepSpeed has float32 weights under autocast. How far they were apart stands in the
manifest as `gate_gap`.
"""

import math
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scripts.lib.data import tables
from scripts.lib.data.responses import engine_gap
from scripts.lib.data.schemas.pairs import PAIRS
from scripts.lib.data.schemas.reference import REFERENCE
from scripts.lib.data.seeds import derive_seed
from scripts.lib.stage import contract, ranks
from scripts.lib.stage.errors import InputError

# Largest |policy − reference| log-probability of a whole answer, in nats per token, that rounding can explain. Near a
# logit of 25, where those of trained models are, bfloat16 has steps of 1/8: single tokens differ by 0.06 (standard
# deviation, SmolLM2-135M-Instruct, bfloat16 weights against autocast). So a mean over fewer than SCATTERED tokens is
# allowed as much more as it scatters more: with 64, six standard deviations.
GATE_TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}
SCATTERED = {"float32": 1, "bfloat16": 64}
GATE_PAIRS = 16
# Largest signed mean of it over the tokens of all these answers of one side, where they are so many that it does not
# scatter more. Rounding has both signs, other weights have not: of random Llamas of 2 to 12 layers, bfloat16 weights
# against autocast, the mean over 32 answers of 30 tokens was at most 9e-4, single answers were up to 2e-2 apart.
GATE_MEAN = {"float32": 1e-4, "bfloat16": 5e-3}
LN2_TOLERANCE = 1e-3
OTHERWISE = (
    "They are planned to be the same weights, so the loss would not start at ln 2.\n"
    "Hint: the reference file belongs to other weights, another tokenizer or another chat template; delete it and run "
    "Snakemake."
)


def run(job: contract.Job) -> None:
    """Train one policy on one or several tables of pairs."""
    from trl import DPOConfig

    from scripts.lib.models import loading, lora, rows, training
    from scripts.lib.models.reference import ReferenceDPOTrainer
    from scripts.lib.stage import artifact

    settings = job.settings
    device = loading.prepare(job.runtime)
    tokenizer = loading.load_tokenizer(job.input("start"))
    read = load_pairs(job)
    pairs, dropped = rows.dataset(
        job,
        read,
        lambda some: token_rows(tokenizer, some),
        lambda row: len(row["prompt_ids"]) + len(row["longer_ids"]) <= settings["max_length"],
    )
    if not len(pairs):
        raise InputError(f"all {dropped} pairs exceed max_length = {settings['max_length']}.\nHint: raise it.")
    del read  # Python's lists of the same tokens are several times as large
    pairs = pairs.remove_columns("longer_ids")
    own = {
        "beta": settings["beta"],
        "loss_type": settings["loss"],
        "loss_weights": settings["loss_weights"],
        "label_smoothing": settings["label_smoothing"],
        "max_length": None,
        "disable_dropout": not lora.dropout(settings["lora"]),
        "precompute_ref_log_probs": True,
    }
    arguments = training.arguments(DPOConfig, job, len(pairs), **own)
    model = loading.load_policy(job.input("start"), **training.model_load_kwargs(job, device))
    trainer = ReferenceDPOTrainer(
        model=model,
        args=arguments,
        peft_config=lora.config(settings["lora"], model, "CAUSAL_LM"),
        train_dataset=pairs,
        processing_class=tokenizer,
    )

    def look(prepared: Any) -> dict[str, float]:
        return {
            "gate_gap": gate(
                prepared,
                tokenizer,
                pairs.select(range(min(GATE_PAIRS, len(pairs)))).to_list(),
                settings["dtype"],
                trainer.args.device,
            )
        }

    first_loss = check_first_loss if starts_at_ln2(settings) else None
    job.metrics = training.train(trainer, job, first_loss, look if settings["start"] == settings["reference"] else None)
    trained = training.gather_full_model(trainer, lambda: loading.load_policy(job.input("start"), settings["dtype"]))
    if not ranks.first():
        return
    job.metrics |= engine_gap(job)
    job.counts |= {"dropped_too_long": dropped, "pairs_trained": len(pairs)}
    artifact.write_model(job.output, lambda folder: loading.save(trained, tokenizer, folder, settings["dtype"]))
    job.note = (
        f"{len(pairs)} pairs, loss {job.metrics['first_loss']:.3f} → {job.metrics['last_loss']:.3f}, "
        f"implicit reward margin {job.metrics.get('rewards/margins', float('nan')):.2f}"
    )


Scored = tuple[dict[str, Any], dict[str, Any], Path]  # a pair, its reference's row, and the table which that is from


def load_pairs(job: contract.Job) -> list[Scored]:
    """All pairs, each with its reference log-probabilities and the table that they stand in.

    A weight below 1 keeps that share of a table's rows, drawn by the seed. Raises InputError if a table and its
    reference do not hold the same pairs.
    """
    found: list[Scored] = []
    job.counts = {"pairs_in": 0, "dropped_by_weight": 0}
    for pairs_path, reference_path, weight in zip(
        job.inputs["pairs"], job.inputs["reference"], [weight for _, weight in job.settings["sources"]], strict=True
    ):
        pairs = tables.read_table(pairs_path, PAIRS).to_dicts()
        reference = {row["pair_id"]: row for row in tables.read_table(reference_path, REFERENCE).to_dicts()}
        if reference.keys() != {pair["pair_id"] for pair in pairs}:
            raise InputError(
                f"{reference_path}: does not hold the pairs of {pairs_path}.\nHint: delete it and run Snakemake."
            )
        kept = pairs
        if weight < 1:
            drawn = random.Random(derive_seed(job.settings["seed"], pairs_path.name, weight))
            kept = drawn.sample(pairs, max(1, round(weight * len(pairs))))
        job.counts["pairs_in"] += len(pairs)
        job.counts["dropped_by_weight"] += len(pairs) - len(kept)
        found += [(pair, reference[pair["pair_id"]], reference_path) for pair in kept]
    return found


def token_rows(tokenizer: Any, pairs: list[Scored]) -> Iterator[dict[str, Any]]:
    """Pairs as the trainer takes them. Raises InputError if a reference counts the tokens of an answer differently."""
    from scripts.lib.models import chat

    for pair, known, reference_path in pairs:
        prompt, chosen, rejected = chat.pair_ids(tokenizer, pair)
        if (len(chosen), len(rejected)) != (known["chosen_tokens"], known["rejected_tokens"]):
            raise InputError(
                f"{reference_path}: pair {pair['pair_id']} has {known['chosen_tokens']} and "
                f"{known['rejected_tokens']} tokens there, {len(chosen)} and {len(rejected)} here.\n"
                "Hint: reference and policy must share a tokenizer and chat template."
            )
        yield {
            "prompt_ids": prompt,
            "chosen_ids": chosen,
            "rejected_ids": rejected,
            "longer_ids": max(chosen, rejected, key=len),
            "ref_chosen_logps": known["chosen_logprob"],
            "ref_rejected_logps": known["rejected_logprob"],
        }


def gate(model: Any, tokenizer: Any, rows: list[dict[str, Any]], dtype: str, device: Any) -> float:
    """Mean |policy − reference| log-probability of pairs, in nats per token, for a start that is its reference.

    Both come from the same weights, so the implicit rewards must vanish up to rounding and the first sigmoid loss be
    ln 2. Raises InputError where one answer is further apart than rounding explains, or where the tokens of a side
    lean one way.
    """
    import torch

    from scripts.lib.models import scoring

    pad = tokenizer.pad_token_id or 0
    gaps: list[float] = []
    for side in ("chosen", "rejected"):
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == "bfloat16"):
            # One by one: sixteen long answers' logits at once take more memory than the training does.
            sequences = [(row["prompt_ids"], row[f"{side}_ids"]) for row in rows]
            values = [scoring.token_logprobs(model, [sequence], pad, device)[0] for sequence in sequences]
        apart, tokens = 0.0, 0
        for row, value in zip(rows, values):
            count = max(1, len(row[f"{side}_ids"]))
            difference = (value - row[f"ref_{side}_logps"]) / count
            allowed = max(GATE_TOLERANCE[dtype], scatter(dtype, count))
            if not abs(difference) <= allowed:  # so that NaN is refused too
                raise InputError(
                    f"gate: before the first step the policy gives a {side} answer log-probability {value:.4f}, its "
                    f"reference {row[f'ref_{side}_logps']:.4f}: {abs(difference):.2g} nats per token apart, allowed "
                    f"are {allowed:.1g}. {OTHERWISE}"
                )
            apart, tokens = apart + count * difference, tokens + count
            gaps.append(abs(difference))
        mean, allowed = apart / tokens, max(GATE_MEAN[dtype], scatter(dtype, tokens))
        if not abs(mean) <= allowed:
            raise InputError(
                f"gate: before the first step the policy's log-probabilities of {len(rows)} {side} answers are "
                f"{mean:+.2g} nats per token from its reference's in the mean, allowed are {allowed:.1g}. {OTHERWISE}"
            )
    return sum(gaps) / len(gaps)


def scatter(dtype: str, tokens: int) -> float:
    """How far rounding may move a mean over so many tokens, in nats per token."""
    return GATE_TOLERANCE[dtype] * math.sqrt(SCATTERED[dtype] / tokens)


def starts_at_ln2(settings: dict[str, Any]) -> bool:
    """Whether theory fixes the first loss: the start is the reference, the loss is sigmoid, arithmetic is float32."""
    return bool(
        settings["start"] == settings["reference"]
        and settings["loss"] == ["sigmoid"]
        and settings["dtype"] == "float32"
    )


def check_first_loss(loss: float) -> None:
    """Raise InputError unless the loss of the first optimizer step is ln 2."""
    if abs(loss - math.log(2)) > LN2_TOLERANCE:
        raise InputError(
            f"gate: the first loss is {loss:.5f}; where the policy starts at its reference it is ln 2 = 0.69315.\n"
            "Hint: the reference file belongs to other weights, another tokenizer or another chat template; delete "
            "it and run Snakemake."
        )


def main(argv: list[str] | None = None) -> int:
    """Command line; see `--help`."""
    return contract.execute("train_dpo", run, ("start", "pairs*", "reference*", "engine-checks*"), argv)


if __name__ == "__main__":
    sys.exit(main())
