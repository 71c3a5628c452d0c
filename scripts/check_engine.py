"""Checks that the sampling engine and the trainer give the same tokens the same log-probabilities.

The responses whose log-probability was recorded when sampling go through the trainer's own forward pass, in the dtype
of training. A gap beyond the tolerance stops the iteration before it trains: its data would not be on-policy.
"""

import sys

from scripts.lib.data import tables
from scripts.lib.data.schemas.engine_check import ENGINE_CHECK
from scripts.lib.data.schemas.rollouts import ROLLOUTS
from scripts.lib.kinds.sampling import CheckEngine
from scripts.lib.stage import contract
from scripts.lib.stage.errors import InputError

# Largest mean gap, in nats per token, that rounding explains; `runtime.engine_tolerance` replaces it.
TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}


def gaps(rows: list[dict[str, float]]) -> dict[str, float]:
    """Engine minus trainer, in nats per token: mean, mean absolute value and largest absolute value, over responses."""
    each = [(row["engine_logprob"] - row["trainer_logprob"]) / max(1, row["tokens"]) for row in rows]
    return {
        "gap": sum(each) / len(each),
        "absolute_gap": sum(map(abs, each)) / len(each),
        "largest_gap": max(map(abs, each)),
    }


def run(job: contract.Job[CheckEngine]) -> None:
    """Check all shards of one policy's rollouts."""
    from scripts.lib.models import loading, scoring

    device = loading.prepare(job.runtime)
    everything = tables.read_table(job.inputs["rollouts"], ROLLOUTS)
    rows = everything.filter(everything["logprob"].is_not_null()).to_dicts()
    if not rows:
        raise InputError(
            f"none of the {everything.height} responses has a log-probability.\n"
            "Hint: if check_responses of the sampling is 0, raise it; otherwise every prompt was too long."
        )
    tokenizer = loading.load_tokenizer(job.input("policy"))
    kernel = loading.attention(job, device)
    model = loading.load_policy(job.input("policy"), job.settings.dtype, device, kernel).eval()
    sequences = [(row["prompt_ids"], row["token_ids"]) for row in rows]
    scored = scoring.logprobs(job, model, tokenizer, sequences, device)
    table = [
        {
            "prompt_id": row["prompt_id"],
            "k": row["k"],
            "tokens": row["tokens"],
            "engine_logprob": row["logprob"],
            "trainer_logprob": value,
        }
        for row, value in zip(rows, scored)
    ]
    job.counts = {"responses_in": everything.height, "responses_compared": len(table)}
    job.metrics = gaps(table)
    tolerance = job.runtime.engine_tolerance or TOLERANCE[job.settings.dtype]
    if not job.metrics["absolute_gap"] <= tolerance:  # written so that NaN fails too
        raise InputError(
            f"gate: engine and trainer differ by {job.metrics['absolute_gap']:.2g} nats per token in the mean of "
            f"{len(table)} responses (signed {job.metrics['gap']:+.2g}, largest {job.metrics['largest_gap']:.2g}); "
            f"allowed are {tolerance:.2g}. The samples are not on-policy for the trainer.\n"
            "Hint: compare dtype, attention kernels and releases of vllm and transformers; runtime.engine_tolerance "
            "sets another tolerance."
        )
    tables.write_table(job.output, table, ENGINE_CHECK, ("prompt_id", "k"))
    job.note = f"{len(table)} responses, mean gap {job.metrics['gap']:+.2g} nats per token"


def main(argv: list[str] | None = None) -> int:
    """Command line; see `--help`."""
    return contract.execute("check_engine", run, CheckEngine, ("policy", "rollouts*"), argv)


if __name__ == "__main__":
    sys.exit(main())
