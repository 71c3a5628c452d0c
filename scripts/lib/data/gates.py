"""What is wrong with a step that has ended well: numbers in, warnings in words out.

A training that diverges to finite numbers ends like any other, and so does an evaluation of what it made. Warnings
stand in the manifest of the step, at the terminal, and first in the report.
"""

from collections.abc import Mapping
from typing import Any

from scripts.lib.kinds.evaluation import Evaluate
from scripts.lib.stage.contract import Job
from scripts.lib.stage.errors import InputError

# The end of a training is the mean over this share of its logged steps: single batches differ.
END = 0.1
# The loss of a step that learns nothing stays within a few percent of its start, which is one batch.
LOSS_ABOVE_START = 0.1
# In the demo, norms of healthy trainings grow up to threefold. Gradients are clipped to 1, so a growing norm means that
# steps no longer follow the loss.
NORM_GROWTH = 10.0
# No better than a coin.
CHANCE = 0.5
# Policies that no longer end their turns; healthy ones are cut off now and then.
CUT_OFF = 0.5


def of_training(losses: list[float], norms: list[float]) -> list[str]:
    """Warnings of the logged losses and gradient norms of a training, in order; the first are of the first step."""
    warnings = []
    last = _end(losses)
    if last > losses[0] + LOSS_ABOVE_START * abs(losses[0]):
        warnings.append(f"the loss ended at {last:.3g}, above its start of {losses[0]:.3g}: lower the learning rate")
    if norms and _end(norms) > NORM_GROWTH * norms[0]:
        warnings.append(
            f"the gradient norm grew from {norms[0]:.3g} to {_end(norms):.3g}, more than {NORM_GROWTH:g}-fold: lower "
            "the learning rate, or lengthen the warm-up"
        )
    return warnings


def _end(values: list[float]) -> float:
    """The mean of the last values, END of them."""
    last = values[-max(1, round(END * len(values))) :]
    return sum(last) / len(last)


def of_reward(heldout_accuracy: float) -> list[str]:
    """Warnings of a reward model's accuracy on held-out pairs."""
    if heldout_accuracy > CHANCE:
        return []
    return [
        f"the held-out accuracy is {heldout_accuracy:.3f}, no better than chance: rewards by this model mean nothing"
    ]


def of_evaluation(summary: Mapping[str, Any], settings: Evaluate) -> list[str]:
    """Warnings of one policy's numbers against its SFT policy's.

    Rewards rose or fell where the interval of their change leaves 0.
    """
    warnings = []
    if settings.max_kl is not None and summary["kl"]["mean"] > settings.max_kl:
        warnings.append(
            f"the KL to the SFT policy is {summary['kl']['mean']:.1f} nats per response, above max_kl = "
            f"{settings.max_kl:g}"
        )
    change = {name: summary["change"][name] for name in settings.rewards}
    fallen = {name: -each["mean"] for name, each in change.items() if each["high"] < 0}
    risen = {name: each["mean"] for name, each in change.items() if each["low"] > 0}
    for name, by in fallen.items():
        against = " and ".join(f"{other} rose by {rise:.3f}" for other, rise in risen.items())
        if against:
            warnings.append(f"{name} fell by {by:.3f} against SFT while {against}: the policy exploits what rose")
        elif name == settings.rewards[0]:
            warnings.append(f"{name} fell by {by:.3f} against SFT")
    return warnings + of_responses(summary["truncated"]["mean"])


def of_responses(truncated: float) -> list[str]:
    """Warnings of the share of a policy's responses that were cut off."""
    if truncated < CUT_OFF:
        return []
    return [f"{100 * truncated:.0f} % of the responses were cut off before the policy ended its turn"]


def of_iteration(before: Mapping[str, Any], after: Mapping[str, Any], labellers: list[str]) -> list[str]:
    """Warnings of one policy's numbers against those of the policy before it: rewards that rose while others fell.

    They rose or fell where the difference of their means is larger than both intervals together: near a labeller's
    highest reward, intervals are so narrow that they differ by next to nothing.
    """
    changes, widths = {}, {}
    for name in labellers:
        was, now = before["rewards"][name], after["rewards"][name]
        changes[name] = now["mean"] - was["mean"]
        widths[name] = was["high"] - was["low"] + now["high"] - now["low"]
    fallen = {name: -change for name, change in changes.items() if -change > widths[name]}
    risen = [name for name, change in changes.items() if change > widths[name]]
    if not fallen or not risen:
        return []
    falls = " and ".join(f"{name} fell by {by:.3f}" for name, by in fallen.items())
    return [f"{falls} in this iteration while {' and '.join(risen)} rose: the policy exploits what rose"]


def tell(job: Job[Any], warnings: list[str], stop: bool, key: str) -> None:
    """Add warnings to a job's. Raises InputError with them if they are to stop the build; `key` names what says so."""
    job.warnings += warnings
    if warnings and stop:
        raise InputError(
            "\n".join([*warnings, f"Hint: change what the warnings name; {key}: false only warns and goes on."])
        )
