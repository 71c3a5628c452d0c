"""RAFT (reward-ranked fine-tuning): supervised fine-tuning on the best of K responses by reward.

For each prompt, training uses the best complete response that has words and whose text round-trips through the
tokenizer. A prompt without one, usually because all responses were cut off, is dropped.
"""

import sys
from collections.abc import Iterator
from typing import Any

import polars as pl

from scripts.lib.data.engine_gap import engine_gap
from scripts.lib.data.responses import candidates, joined, unfit
from scripts.lib.kinds.runs import TrainRaft
from scripts.lib.stage import contract
from scripts.lib.stage.errors import InputError


def best_responses(rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """(each prompt's fit and trainable response with the highest reward, number of prompts without one by reason).

    The reason is all_empty where some responses were complete, and all of these without words; else none_complete.
    """
    best: dict[str, dict[str, Any]] = {}
    complete: dict[str, bool] = {}
    for row in rows:
        why = "untrainable" if not row["trainable"] else unfit(row)
        complete[row["prompt_id"]] = complete.get(row["prompt_id"], False) or why in ("", "empty")
        leader = best.get(row["prompt_id"])
        if not why and (leader is None or row["reward"] > leader["reward"]):
            best[row["prompt_id"]] = row
    without = [complete[prompt] for prompt in complete if prompt not in best]
    return list(best.values()), {"none_complete": without.count(False), "all_empty": without.count(True)}


def run(job: contract.Job[TrainRaft]) -> None:
    """Fine-tune a policy on the best responses."""
    from scripts.lib.models import loading, sft

    device = loading.prepare(job.runtime)
    loading.refuse_long_rows(job.input("start"), job.settings)
    table = joined(job)
    responses = candidates(table)
    best, dropped = best_responses(responses)
    if not responses:
        raise InputError("no response to train on.\nHint: every prompt was too long; raise max_prompt_tokens.")
    if not best:
        raise InputError(
            f"no response to train on: all {len(responses)} were cut off, have no words, or do not round-trip through "
            "the tokenizer.\nHint: raise max_new_tokens of the sampling."
        )
    tokenizer = loading.load_tokenizer(job.input("start"))

    def rows_of(part: pl.DataFrame) -> Iterator[dict[str, list[int]]]:
        for row in part.iter_rows(named=True):
            prompt, response = row["prompt_ids"], row["token_ids"]
            yield sft.row(prompt + response, [0] * len(prompt) + [1] * len(response))

    job.counts = {
        "responses_in": len(responses),
        "responses_not_trainable": sum(not row["trainable"] for row in responses),
        "responses_empty": sum(unfit(row) == "empty" for row in responses),
        **{f"dropped_{reason}": count for reason, count in dropped.items()},
    }
    job.metrics = {"best_reward": sum(row["reward"] for row in best) / max(1, len(best)), **engine_gap(job)}
    sft.fine_tune(job, job.input("start"), tokenizer, table[[row["row"] for row in best]], rows_of, device)
    job.note = f"best of K for {len(best)} prompts, mean reward {job.metrics['best_reward']:.3f}"


def main(argv: list[str] | None = None) -> int:
    """Command line; see `--help`."""
    return contract.execute("train_raft", run, TrainRaft, ("start", "rollouts*", "rewards*", "engine-checks*"), argv)


if __name__ == "__main__":
    sys.exit(main())
