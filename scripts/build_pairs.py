"""Preference pairs from K responses per prompt: which is chosen and which rejected (paper, section 3.3).

The penalised reward, reward − length_penalty · length (equation 9), decides both ranks and orientation, so a response
with the higher penalised reward is never the rejected one. A truncated response is never chosen, nor is one without
words; both may be rejected. A response whose text does not round-trip through the tokenizer is in no pair. Ties and
identical texts are dropped and counted.
"""

import random
import sys
from typing import Any

import polars as pl

from scripts.lib.data import gates, tables
from scripts.lib.data.responses import candidates, joined, unfit
from scripts.lib.data.schemas.pairs import PAIRS
from scripts.lib.data.seeds import derive_seed
from scripts.lib.kinds.pairing import BuildPairs
from scripts.lib.stage import contract
from scripts.lib.stage.digest import text_sha256
from scripts.lib.stage.errors import InputError

Row = dict[str, Any]


def penalised(row: Row, settings: BuildPairs) -> float:
    """Reward minus the length penalty, per character of the text or per token of the response."""
    length = len(row["response"]) if settings.length_unit == "character" else row["tokens"]
    return float(row["reward"] - settings.length_penalty * length)


def choose(rows: list[Row], settings: BuildPairs) -> tuple[Row, Row] | str:
    """(chosen, rejected) among one prompt's responses, or the reason why there is no pair.

    Each row has `score`, its penalised reward. max_min takes best and worst; max_random the best and a random
    lower one; max_max the best two; quantile the responses nearest to the two quantiles of the ranking.
    """
    if not rows:
        return "none_trainable"
    ranked = sorted(rows, key=lambda row: (-row["score"], row["k"]))
    fit = [row for row in ranked if not unfit(row)]
    if not fit:
        return "all_empty" if "empty" in map(unfit, ranked) else "all_truncated"
    if len(ranked) < 2:
        return "single_response"
    last = len(ranked) - 1
    if settings.strategy == "quantile":
        wanted = round((1 - settings.chosen_quantile) * last)
        chosen = min(fit, key=lambda row: (abs(ranked.index(row) - wanted), ranked.index(row)))
        rejected = ranked[round((1 - settings.rejected_quantile) * last)]
    else:
        chosen = fit[0]
        # An unfit response may rank above the best one that is fit; it must not be the rejected one then.
        others = ranked[ranked.index(chosen) + 1 :]
        if not others:
            return f"better_{unfit(ranked[0])}"
        if settings.strategy == "max_min":
            rejected = others[-1]
        elif settings.strategy == "max_max":
            rejected = others[0]
        else:
            rejected = random.Random(derive_seed(settings.seed, chosen["prompt_id"])).choice(others)
    if chosen is rejected:
        return "same_response"
    if chosen["response"] == rejected["response"]:
        return "identical"
    if chosen["score"] == rejected["score"]:
        return "tied"
    if chosen["score"] < rejected["score"]:
        # The better response is unfit, or it would be the chosen one.
        return f"better_{unfit(rejected)}"
    if chosen["score"] - rejected["score"] <= settings.minimum_margin:
        return "small_margin"
    return chosen, rejected


def run(job: contract.Job[BuildPairs]) -> None:
    """Build one table of pairs from all shards of rollouts and rewards."""
    by_prompt: dict[str, list[Row]] = {}
    table = joined(job)
    rows = candidates(table)
    for row in rows:
        row["score"] = penalised(row, job.settings)
        by_prompt.setdefault(row["prompt_id"], []).append(row)
    pairs: list[Row] = []
    dropped: dict[str, int] = {}
    for prompt, responses in by_prompt.items():
        choice = choose([row for row in responses if row["trainable"]], job.settings)
        if isinstance(choice, str):
            dropped[choice] = dropped.get(choice, 0) + 1
            continue
        chosen, rejected = (row | table.row(row["row"], named=True) for row in choice)
        pairs.append(
            {
                "pair_id": text_sha256(f"{prompt} {chosen['k']} {rejected['k']}")[:16],
                "prompt_id": prompt,
                "messages": chosen["messages"],
                "chosen": chosen["response"],
                "rejected": rejected["response"],
                "chosen_k": chosen["k"],
                "rejected_k": rejected["k"],
                "chosen_reward": chosen["reward"],
                "rejected_reward": rejected["reward"],
                "margin": chosen["score"] - rejected["score"],
                "prompt_ids": chosen["prompt_ids"],
                "chosen_ids": chosen["token_ids"],
                "rejected_ids": rejected["token_ids"],
                "chosen_finish_reason": chosen["finish_reason"],
                "rejected_finish_reason": rejected["finish_reason"],
            }
        )
    size = job.settings.size
    if size is not None and len(pairs) > size:
        dropped["beyond_size"] = len(pairs) - size
        pairs = sorted(sorted(pairs, key=lambda pair: pair["pair_id"])[:size], key=lambda pair: pair["prompt_id"])
    if not pairs:
        raise no_pairs(len(by_prompt), dropped)
    job.counts = {"prompts_in": len(by_prompt), "responses_in": len(rows), "pairs_out": len(pairs)}
    job.counts["responses_not_trainable"] = sum(not row["trainable"] for row in rows)
    job.counts["responses_empty"] = sum(unfit(row) == "empty" for row in rows)
    job.counts |= {f"dropped_{reason}": count for reason, count in sorted(dropped.items())}
    job.metrics = statistics(pairs, rows)
    job.warnings = gates.of_responses(job.metrics["truncated"])
    tables.write_table(job.output, pairs, PAIRS, ("pair_id",))
    job.note = f"{len(pairs)} pairs of {len(by_prompt)} prompts, mean margin {job.metrics['mean_margin']:.3f}"


# Why most prompts give no pair → what helps.
REMEDIES = {
    "none_trainable": "its responses hold special tokens or half characters; look at them, and at the SFT policy",
    "all_truncated": "raise max_new_tokens of the sampling",
    "better_truncated": "raise max_new_tokens of the sampling",
    "all_empty": "look at the responses; the policy may have diverged",
    "better_empty": "look at the responses; the labeller likes those without words",
    "single_response": "raise k of the sampling",
    "same_response": "set chosen_quantile and rejected_quantile further apart, or raise k of the sampling",
    "identical": "raise the temperatures of the sampling",
    "tied": "use a labeller that can tell responses apart",
    "small_margin": "lower minimum_margin of the pairing",
}


def no_pairs(prompts: int, dropped: dict[str, int]) -> InputError:
    """The error for a table without pairs, with what helps against the commonest reason."""
    if not prompts:
        hint = "every prompt was longer than max_prompt_tokens of the sampling; raise it."
        return InputError(f"no pairs: there is no response to any prompt\nHint: {hint}")
    most = max(dropped, key=lambda reason: dropped[reason])
    return InputError(f"no pairs: {prompts} prompts, all dropped: {dropped}.\nHint: for {most}, {REMEDIES[most]}.")


def statistics(pairs: list[Row], rows: list[Row]) -> dict[str, float]:
    """Statistics of a pair table: margins, lengths in tokens, duplicates, truncation, reward spread."""
    # Keep the order: a mean over groups in arbitrary order differs in its last digit from run to run.
    table = pl.DataFrame([{key: row[key] for key in ("prompt_id", "response", "reward", "tokens")} for row in rows])
    distinct = (
        table.group_by("prompt_id", maintain_order=True)
        .agg(pl.col("response").n_unique() / pl.len())["response"]
        .mean()
    )
    spread = table.group_by("prompt_id", maintain_order=True).agg(pl.col("reward").std())["reward"].mean()
    count = len(pairs)
    return {
        "mean_margin": sum(pair["margin"] for pair in pairs) / count,
        "chosen_tokens": sum(len(pair["chosen_ids"]) for pair in pairs) / count,
        "rejected_tokens": sum(len(pair["rejected_ids"]) for pair in pairs) / count,
        "rejected_truncated": sum(pair["rejected_finish_reason"] == "length" for pair in pairs) / count,
        "mean_reward": sum(row["reward"] for row in rows) / len(rows),
        "reward_spread": float(spread or 0),  # type: ignore[arg-type]
        "distinct_responses": float(distinct),  # type: ignore[arg-type]
        "truncated": sum(row["finish_reason"] == "length" for row in rows) / len(rows),
    }


def main(argv: list[str] | None = None) -> int:
    """Command line; see `--help`."""
    return contract.execute("build_pairs", run, BuildPairs, ("rollouts*", "rewards*"), argv)


if __name__ == "__main__":
    sys.exit(main())
