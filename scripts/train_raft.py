"""RAFT (reward-ranked fine-tuning): supervised fine-tuning on the best of K responses by reward.

For each prompt, training uses the best complete response whose text round-trips through the tokenizer. A prompt without
one, usually because all responses were cut off, is dropped.
"""

import sys
from collections.abc import Iterator
from typing import Any

import polars as pl

from scripts.lib.data.engine_gap import engine_gap
from scripts.lib.data.responses import candidates, joined
from scripts.lib.kinds.runs import TrainRaft
from scripts.lib.stage import contract
from scripts.lib.stage.errors import InputError


def best_responses(rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], int]:
    """(each prompt's trainable complete response with the highest reward, number of prompts without one)."""
    prompts = {row["prompt_id"] for row in rows}
    best: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["finish_reason"] != "stop" or not row["trainable"]:
            continue
        leader = best.get(row["prompt_id"])
        if leader is None or row["reward"] > leader["reward"]:
            best[row["prompt_id"]] = row
    return list(best.values()), len(prompts) - len(best)


def run(job: contract.Job[TrainRaft]) -> None:
    """Fine-tune a policy on the best responses."""
    from scripts.lib.models import loading, sft

    device = loading.prepare(job.runtime)
    loading.refuse_long_rows(job.input("start"), job.settings)
    table = joined(job)
    responses = candidates(table)
    best, none_complete = best_responses(responses)
    if not responses:
        raise InputError("no response to train on.\nHint: every prompt was too long; raise max_prompt_tokens.")
    if not best:
        raise InputError(
            f"no response to train on: all {len(responses)} were cut off or do not round-trip through the tokenizer.\n"
            "Hint: raise max_new_tokens of the sampling."
        )
    tokenizer = loading.load_tokenizer(job.input("start"))

    def rows_of(part: pl.DataFrame) -> Iterator[dict[str, list[int]]]:
        for row in part.iter_rows(named=True):
            prompt, response = row["prompt_ids"], row["token_ids"]
            yield sft.row(prompt + response, [0] * len(prompt) + [1] * len(response))

    job.counts = {
        "responses_in": len(responses),
        "responses_not_trainable": sum(not row["trainable"] for row in responses),
        "dropped_none_complete": none_complete,
    }
    job.metrics = {"best_reward": sum(row["reward"] for row in best) / max(1, len(best)), **engine_gap(job)}
    sft.fine_tune(job, job.input("start"), tokenizer, table[[row["row"] for row in best]], rows_of, device)
    job.note = f"best of K for {len(best)} prompts, mean reward {job.metrics['best_reward']:.3f}"


def main(argv: list[str] | None = None) -> int:
    """Command line; see `--help`."""
    return contract.execute("train_raft", run, TrainRaft, ("start", "rollouts*", "rewards*", "engine-checks*"), argv)


if __name__ == "__main__":
    sys.exit(main())
