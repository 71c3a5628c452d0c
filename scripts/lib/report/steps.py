"""Tables of the steps beside the evaluations: pairs, checks of the engine, reward models."""

from typing import NamedTuple

from scripts.lib.report.format import number, percent, title
from scripts.lib.report.read import Step


class Table(NamedTuple):
    """Names of columns, and rows of words and numbers; the first `left` columns are words."""

    names: list[str]
    rows: list[list[str]]
    left: int


def pairs(steps: list[Step]) -> Table | None:
    """What became of every iteration's rollouts: a row for each table that DPO trained on. None without any."""
    if not steps:
        return None
    reasons = sorted({key for step in steps for key in step.manifest["counts"] if key.startswith("dropped_")})
    names = ["responses of", "prompts", "pairing", "prompts in", "pairs out"]
    names += [key.removeprefix("dropped_").replace("_", " ") for key in reasons]
    names += ["mean margin", "mean reward", "spread", "distinct", "truncated", "chosen tokens", "rejected tokens"]
    rows = []
    for where, manifest in steps:
        counts, metrics = manifest["counts"], manifest["metrics"]
        row = [title(where["policy"]), where["prompts"], f"{where['reward']} · {where['pairing']}"]
        row += [str(counts[key]) for key in ("prompts_in", "pairs_out")]
        row += [str(counts.get(key, 0)) for key in reasons]
        row += [number(metrics[key]) for key in ("mean_margin", "mean_reward", "reward_spread")]
        row += [percent(metrics[key]) for key in ("distinct_responses", "truncated")]
        rows.append(row + [number(metrics[key], 1) for key in ("chosen_tokens", "rejected_tokens")])
    return Table(names, rows, left=3)


def engines(steps: list[Step]) -> Table | None:
    """How far the engine that sampled was from the model that was trained, by iteration. None without a check."""
    if not steps:
        return None
    names = ["responses of", "prompts", "sampling", "compared", "mean gap", "mean of absolute gaps", "largest gap"]
    rows = []
    for where, manifest in steps:
        row = [title(where["policy"]), where["prompts"], where["sampling"]]
        row.append(str(manifest["counts"]["responses_compared"]))
        rows.append(row + [f"{manifest['metrics'][key]:.1e}" for key in ("gap", "absolute_gap", "largest_gap")])
    return Table(names, rows, left=3)


def rewards(steps: list[Step]) -> Table | None:
    """How well the reward models predict held-out preferences. None without a model."""
    if not steps:
        return None
    names = ["reward model", "held-out accuracy", "loss", "calibration error", "longer is chosen"]
    names += ["pairs trained", "pairs held out", "too long"]
    rows = []
    for where, manifest in steps:
        counts, metrics = manifest["counts"], manifest["metrics"]
        row = [where["reward"], percent(metrics["heldout_accuracy"]), number(metrics["heldout_loss"])]
        row += [number(metrics["heldout_calibration_error"]), percent(metrics["heldout_longer_is_chosen"])]
        rows.append(row + [str(counts[key]) for key in ("pairs_trained", "heldout_scored", "dropped_too_long")])
    return Table(names, rows, left=1)
