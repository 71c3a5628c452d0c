"""Rewards of a policy's responses, compared with those of its SFT policy on the same prompts.

A win rate compares every response with every one of the SFT policy's; ties count half. KL to the SFT policy is the mean
of log π − log π(SFT) over the responses, in nats per response (the estimator is described in scripts/evaluate.py).
"""

from typing import Any

from scripts.lib.data.stats import interval
from scripts.lib.kinds.evaluation import Evaluate

Row = dict[str, Any]


def win_rate(rewards: list[float], baseline: list[float]) -> float:
    """Share of all pairs (one of rewards, one of baseline) in which the former is higher; ties count half."""
    wins = sum((a > b) + 0.5 * (a == b) for a in rewards for b in baseline)
    return wins / (len(rewards) * len(baseline))


def summary(rows: list[Row], settings: Evaluate) -> dict[str, Any]:
    """Means with bootstrap intervals over prompts; `change` is the paired difference from the SFT policy."""
    by_prompt: dict[str, list[Row]] = {}
    for row in rows:
        by_prompt.setdefault(row["prompt_id"], []).append(row)

    def over_prompts(value: Any) -> dict[str, float]:
        per_prompt = [value(group) for group in by_prompt.values()]
        return interval(per_prompt, settings.confidence, settings.resamples, settings.seed)

    def mean(group: list[Row], field: Any) -> float:
        return float(sum(field(row) for row in group) / len(group))

    result: dict[str, Any] = {
        "tokens": over_prompts(lambda group: mean(group, lambda row: row["tokens"])),
        "characters": over_prompts(lambda group: mean(group, lambda row: len(row["response"]))),
        "truncated": over_prompts(lambda group: mean(group, lambda row: row["finish_reason"] == "length")),
        "kl": over_prompts(lambda group: mean(group, lambda row: row["kl"])),
        "rewards": {},
        "change": {},
        "win_rate": {},
    }
    for labeller in settings.rewards:

        def reward(row: Row, labeller: str = labeller) -> float:
            return float(row["rewards"][labeller])

        def sft_reward(row: Row, labeller: str = labeller) -> float:
            return float(row["sft_rewards"][labeller])

        result["rewards"][labeller] = over_prompts(lambda group: mean(group, reward))
        result["change"][labeller] = over_prompts(lambda group: mean(group, reward) - mean(group, sft_reward))
        result["win_rate"][labeller] = over_prompts(
            lambda group: win_rate([reward(row) for row in group], [sft_reward(row) for row in group])
        )
    return result
