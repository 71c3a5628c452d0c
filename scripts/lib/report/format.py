"""Numbers, names and texts as the page shows them. Nothing here knows of HTML: the templates escape and mark up."""

from collections.abc import Callable
from typing import NamedTuple

Interval = dict[str, float]  # a mean with the ends of its interval: mean, low, high

LONGEST_TEXT = 900


class Shown(NamedTuple):
    """A mean with its interval, in words."""

    mean: str
    low: str
    high: str


class Excerpt(NamedTuple):
    """The beginning of a text, and how many characters were cut off."""

    text: str
    cut: int


def number(value: float | None, digits: int = 3) -> str:
    """A number for people, with a true minus sign; a dash where there is none."""
    if value is None:
        return "–"
    text = f"{value:.{digits}f}"
    return (text.removeprefix("-") if float(text) == 0 else text).replace("-", "−")


def tenths(value: float) -> str:
    """A number with one digit after the point, such as a mean of tokens."""
    return number(value, 1)


def nats(value: float) -> str:
    """A difference of log-probabilities."""
    return number(value, 2)


def signed(value: float) -> str:
    """A difference with its sign."""
    text = number(value)
    return text if text.startswith("−") or float(text) == 0 else f"+{text}"


def percent(value: float) -> str:
    """A share in percent."""
    return f"{number(100 * value, 1)} %"


def interval(value: Interval, shown: Callable[[float], str] = number) -> Shown:
    """A mean with its interval; a percent sign stands behind the mean only."""
    low, high = (shown(value[end]).removesuffix(" %") for end in ("low", "high"))
    return Shown(shown(value["mean"]), low, high)


def title(policy: str) -> str:
    """A policy's name for people, from its path: `sft/NAME` or `runs/NAME/iterN`."""
    parts = policy.split("/")
    return f"SFT {parts[1]}" if parts[0] == "sft" else f"{parts[1]} {parts[2]}"


def excerpt(text: str) -> Excerpt:
    """A text's first LONGEST_TEXT characters."""
    return Excerpt(text[:LONGEST_TEXT], max(len(text) - LONGEST_TEXT, 0))
