"""One DPO step of a run with TRL's DPOTrainer and precomputed reference log-probabilities.

No reference model is loaded. Before the first step a gate compares the policy, as it is about to be trained, with the
reference: if both have the same weights, every implicit reward must be zero and the sigmoid loss ln 2, up to rounding.
In bfloat16 the two are rounded differently: the reference was computed with bfloat16 weights, while a policy that is
trained in full without DeepSpeed has float32 weights under autocast. The manifest records their mean distance as
`gate_gap`.
"""

import math
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scripts.lib.data import tables
from scripts.lib.data.engine_gap import engine_gap
from scripts.lib.data.schemas.pairs import PAIRS
from scripts.lib.data.schemas.reference import REFERENCE
from scripts.lib.data.seeds import derive_seed
from scripts.lib.kinds.runs import WHOLE_BATCH, TrainDpo
from scripts.lib.stage import contract, ranks
from scripts.lib.stage.errors import InputError

# Largest difference |policy − reference| in the log-probability of one answer, in nats per token, that rounding can
# explain. Near 25, where the logits of trained models are, bfloat16 has steps of 1/8: single tokens differ by 0.06
# (standard deviation; SmolLM2-135M-Instruct, bfloat16 weights against autocast). A mean over fewer than SCATTERED
# tokens scatters more, so its tolerance grows in proportion: with 64, to six standard deviations.
GATE_TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}
SCATTERED = {"float32": 1, "bfloat16": 64}
GATE_PAIRS = 16
# Largest signed mean of this difference over the tokens of all GATE_PAIRS answers of one side, given enough tokens that
# the mean does not scatter more. Rounding errors have both signs and cancel; the effect of other weights does not. For
# random Llamas of 2 to 12 layers, bfloat16 weights against autocast, the mean over 32 answers of 30 tokens was at most
# 9e-4, while single answers differed by up to 2e-2.
GATE_MEAN = {"float32": 1e-4, "bfloat16": 5e-3}
LN2_TOLERANCE = 1e-3
OTHER_WEIGHTS = (
    "The plan says that they are the same weights, so the loss would not start at ln 2.\n"
    "Hint: the reference file belongs to other weights, another tokenizer or another chat template; delete it and run "
    "Snakemake."
)


def run(job: contract.Job[TrainDpo]) -> None:
    """Train one policy on one or more tables of pairs."""
    from trl import DPOConfig

    from scripts.lib.models import loading, lora, policy, rows, training
    from scripts.lib.models.reference import ReferenceDPOTrainer
    from scripts.lib.stage import artifact

    settings = job.settings
    device = loading.prepare(job.runtime)
    loading.refuse_long_rows(job.input("start"), job.settings)
    tokenizer = loading.load_tokenizer(job.input("start"))
    scored = load_pairs(job)
    pairs, dropped = rows.dataset(
        job,
        scored,
        lambda part: token_rows(tokenizer, part),
        lambda row: len(row["prompt_ids"]) + len(row["longer_ids"]) <= settings.max_length,
    )
    if not scored:
        raise InputError(f"no pairs to train on: {job.counts}\nHint: raise `weight` of the mix, or name more pairs.")
    if not len(pairs):
        raise InputError(f"all {dropped} pairs exceed max_length = {settings.max_length}.\nHint: raise it.")
    del scored  # the same tokens as Python lists take several times as much memory
    pairs = pairs.remove_columns("longer_ids")
    trainer_options = {
        "beta": settings.beta,
        "loss_type": settings.loss,
        "loss_weights": settings.loss_weights,
        "label_smoothing": settings.label_smoothing,
        "max_length": None,
        "disable_dropout": not lora.dropout(settings.lora),
        "precompute_ref_log_probs": True,
        **training.WITHOUT_ROUTER_LOSS,
    }
    arguments = training.arguments(DPOConfig, job, len(pairs), **trainer_options)
    at_once = arguments.per_device_train_batch_size
    if (sorting := sorted(WHOLE_BATCH & set(settings.loss))) and at_once < settings.batch_size:
        raise InputError(
            f"loss {' and '.join(sorting)} sorts all {settings.batch_size} rows of a batch, and a forward pass of one "
            f"of {ranks.count()} processes holds {at_once}.\n"
            f"Hint: set runtime.train_micro_batch to {settings.batch_size} and train in one process, or take another "
            "loss."
        )
    model = loading.load_policy(job.input("start"), **training.model_load_kwargs(job, device))
    trainer = ReferenceDPOTrainer(
        model=model,
        args=arguments,
        peft_config=lora.config(settings.lora, model, "CAUSAL_LM"),
        train_dataset=pairs,
        processing_class=tokenizer,
    )

    def look(prepared: Any) -> dict[str, float]:
        return {
            "gate_gap": gate(
                prepared,
                tokenizer,
                pairs.select(range(min(GATE_PAIRS, len(pairs)))).to_list(),
                settings.dtype,
                trainer.args.device,
            )
        }

    first_loss = check_first_loss if starts_at_ln2(settings) else None
    job.metrics = training.train(trainer, job, first_loss, look if settings.start == settings.reference else None)
    trained = training.gather_full_model(trainer, lambda: loading.load_policy(job.input("start"), settings.dtype))
    if not ranks.first():
        return
    job.metrics |= engine_gap(job)
    job.counts |= {"dropped_too_long": dropped, "pairs_trained": len(pairs)}
    artifact.write_model(job.output, lambda folder: policy.save(trained, tokenizer, folder, settings.dtype))
    job.note = (
        f"{len(pairs)} pairs, loss {job.metrics['first_loss']:.3f} → {job.metrics['last_loss']:.3f}, "
        f"implicit reward margin {job.metrics.get('rewards/margins', float('nan')):.2f}"
    )


Scored = tuple[dict[str, Any], dict[str, Any], Path]  # a pair, its reference row, and the file of that row


def load_pairs(job: contract.Job[TrainDpo]) -> list[Scored]:
    """All pairs, each with its reference row and the file that this row is from.

    A weight below 1 keeps that share of a table's rows, drawn by the seed. Raises InputError if a table and its
    reference do not contain the same pairs.
    """
    scored: list[Scored] = []
    job.counts = {"pairs_in": 0, "dropped_by_weight": 0}
    for pairs_path, reference_path, weight in zip(
        job.inputs["pairs"], job.inputs["reference"], [weight for _, weight in job.settings.sources], strict=True
    ):
        pairs = tables.read_table(pairs_path, PAIRS).to_dicts()
        reference = {row["pair_id"]: row for row in tables.read_table(reference_path, REFERENCE).to_dicts()}
        if reference.keys() != {pair["pair_id"] for pair in pairs}:
            raise InputError(
                f"{reference_path}: does not hold the pairs of {pairs_path}.\nHint: delete it and run Snakemake."
            )
        kept = pairs
        if weight < 1:
            drawn = random.Random(derive_seed(job.settings.seed, pairs_path.name, weight))
            kept = drawn.sample(pairs, max(1, round(weight * len(pairs))))
        job.counts["pairs_in"] += len(pairs)
        job.counts["dropped_by_weight"] += len(pairs) - len(kept)
        scored += [(pair, reference[pair["pair_id"]], reference_path) for pair in kept]
    return scored


def token_rows(tokenizer: Any, pairs: list[Scored]) -> Iterator[dict[str, Any]]:
    """Pairs as the trainer takes them. Raises InputError if an answer has another number of tokens in its reference."""
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
    """Mean |policy − reference| log-probability of pairs, in nats per token, for a policy that starts at its reference.

    Both come from the same weights, so the implicit rewards must be zero up to rounding and the first sigmoid loss
    ln 2. Raises InputError if an answer's difference exceeds what rounding explains, or if the differences on one side
    do not cancel in the mean.
    """
    import torch

    from scripts.lib.models import forward

    pad = tokenizer.pad_token_id or 0
    gaps: list[float] = []
    for side in ("chosen", "rejected"):
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == "bfloat16"):
            # One by one: the logits of GATE_PAIRS long answers at once would take more memory than training does.
            sequences = [(row["prompt_ids"], row[f"{side}_ids"]) for row in rows]
            values = [forward.token_logprobs(model, [sequence], pad, device)[0] for sequence in sequences]
        total, tokens = 0.0, 0
        for row, value in zip(rows, values):
            count = max(1, len(row[f"{side}_ids"]))
            difference = (value - row[f"ref_{side}_logps"]) / count
            allowed = max(GATE_TOLERANCE[dtype], scatter(dtype, count))
            if not abs(difference) <= allowed:  # written so that NaN fails too
                raise InputError(
                    f"gate: before the first step the policy gives a {side} answer log-probability {value:.4f}, its "
                    f"reference {row[f'ref_{side}_logps']:.4f}: {abs(difference):.2g} nats per token apart, allowed "
                    f"are {allowed:.1g}. {OTHER_WEIGHTS}"
                )
            total, tokens = total + count * difference, tokens + count
            gaps.append(abs(difference))
        mean, allowed = total / tokens, max(GATE_MEAN[dtype], scatter(dtype, tokens))
        if not abs(mean) <= allowed:
            raise InputError(
                f"gate: before the first step the policy's log-probabilities of {len(rows)} {side} answers are "
                f"{mean:+.2g} nats per token from its reference's in the mean, allowed are {allowed:.1g}. "
                f"{OTHER_WEIGHTS}"
            )
    return sum(gaps) / len(gaps)


def scatter(dtype: str, tokens: int) -> float:
    """How far rounding may shift a mean over this many tokens, in nats per token."""
    return GATE_TOLERANCE[dtype] * math.sqrt(SCATTERED[dtype] / tokens)


def starts_at_ln2(settings: TrainDpo) -> bool:
    """Whether the first loss must be ln 2: the start is the reference, the loss is sigmoid, the dtype is float32."""
    return bool(settings.start == settings.reference and settings.loss == ["sigmoid"] and settings.dtype == "float32")


def check_first_loss(loss: float) -> None:
    """Raise InputError unless the loss of the first optimizer step is ln 2."""
    if abs(loss - math.log(2)) > LN2_TOLERANCE:
        raise InputError(
            f"gate: the first loss is {loss:.5f}; if the policy starts at its reference it is ln 2 = 0.69315.\n"
            "Hint: the reference file belongs to other weights, another tokenizer or another chat template; delete "
            "it and run Snakemake."
        )


def main(argv: list[str] | None = None) -> int:
    """Command line; see `--help`."""
    return contract.execute("train_dpo", run, TrainDpo, ("start", "pairs*", "reference*", "engine-checks*"), argv)


if __name__ == "__main__":
    sys.exit(main())
