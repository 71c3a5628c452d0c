"""What a configuration holds that decides nothing: entries that nobody names, and keys that do not apply to a run."""

import difflib
from collections.abc import Iterator
from typing import get_args

from scripts.lib.kinds.config import Config
from scripts.lib.kinds.rewards import RewardBt
from scripts.lib.kinds.runs import Run
from scripts.lib.kinds.sft import SftTrain
from scripts.lib.planning.given import Given


def unused(config: Config, own: Given) -> list[str]:
    """A line for every entry and key that could be left out, with the nearest name that something uses.

    Of the configuration only `own` is looked at, what the person's own files say: an overlay need not use all that a
    preset has.
    """
    used = _used(config)
    lines = []
    for block, names in used.items():
        for entry in own.get(block) or {}:
            if entry not in names:
                near = difflib.get_close_matches(entry, names, n=1)
                hint = f"did you mean {near[0]}?" if near else "name it somewhere, or leave it out."
                lines.append(f"{block}.{entry}: nothing uses it. Hint: {hint}")
    for name, said in (own.get("runs") or {}).items():
        lines += _without_effect(f"runs.{name}", config.runs[name], said)
    for name, said in (own.get("pairings") or {}).items():
        if (strategy := config.pairings[name].strategy) != "quantile":
            quantiles = [key for key in ("chosen_quantile", "rejected_quantile") if key in said]
            text = f"decides nothing, because strategy is {strategy}"
            lines += [f"pairings.{name}.{key}: {text}. Hint: set strategy to quantile." for key in quantiles]
    return lines


def _used(config: Config) -> dict[str, set[str]]:
    """The entries of each block that something names."""
    used: dict[str, set[str]] = {
        name: set() for name in ("bases", "datasets", "prompts", "sft", "rewards", "samplings", "pairings")
    }
    for sft in config.sft.values():
        used["bases"].add(sft.base)
        if isinstance(sft, SftTrain):
            used["datasets"].add(sft.dataset)
    for reward in config.rewards.values():
        if isinstance(reward, RewardBt):
            block, _, name = reward.init.partition("/")
            used["bases" if block == "base" else "sft"].add(name)
            used["datasets"] |= {reward.dataset, reward.heldout}
    for run in config.runs.values():
        used["sft"].add(run.sft)
        used["prompts"] |= {run.prompts} if run.prompts else set()
        used["datasets"] |= {part.dataset for part in run.mix}
        used["pairings"] |= {part.pairing for part in run.mix}
        for own in (run, *run.overrides.values()):
            for key in ("reward", "sampling", "pairing"):
                if name := getattr(own, key):
                    used[f"{key}s"].add(name)
    for evaluation in config.evaluation.values():
        used["prompts"].add(evaluation.prompts)
        used["samplings"].add(evaluation.sampling)
        used["rewards"] |= set(evaluation.rewards)
    return used


def _without_effect(key: str, run: Run, said: Given) -> Iterator[str]:
    """The keys that are said of a run, or of an iteration of it, and that its method does not read."""
    methods = get_args(Run.model_fields["method"].annotation)
    why = {method: f"method is {run.method}" for method in methods if method != run.method}
    if run.method == "raft":
        why |= dict.fromkeys(("pairing", "reference", "mix"), "method is raft")
    if run.prompts is None:
        why |= dict.fromkeys(("sampling", "pairing", "train_on"), "the run has no prompts to sample on")
    blocks = {key: said} | {f"{key}.overrides.{n}": own for n, own in (said.get("overrides") or {}).items()}
    for place, block in blocks.items():
        for name, reason in why.items():
            if block.get(name):
                yield f"{place}.{name}: decides nothing, because {reason}. Hint: leave it out."
