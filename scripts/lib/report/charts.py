"""The report's charts: one value by iteration, or one against another, with their intervals.

Each is inline SVG that takes its colours from the variables of the style sheet, so one drawing serves light, dark and
print. The same numbers give the same bytes: no dates, no random ids, no fonts of the machine.
"""

import io
import re
from typing import TYPE_CHECKING, NamedTuple

from markupsafe import Markup

from scripts.lib.report.format import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GLYPHS = ("●", "■", "▲", "◆", "▼", "✚", "✖")
COLOURS = 8  # the style sheet names them run0 to run7
# Matplotlib knows no CSS variables: it draws in these colours, which are then replaced by var(--…).
INK, MUTED, GRID, PAPER = "#b00000", "#b00001", "#b00002", "#b00003"
NAMES = {INK: "ink", MUTED: "muted", GRID: "rule", PAPER: "paper"}
SETTINGS = {
    "svg.hashsalt": "ouroboros",
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "axes.formatter.useoffset": False,
}


class Glyph(NamedTuple):
    """A marker in the page's text. `colour` is one of the runs' colours; None is the colour of the text."""

    character: str
    colour: int | None


class Line(NamedTuple):
    """One run in a chart: its slot and its points, the SFT policy first."""

    slot: int
    xs: list[Interval]
    ys: list[Interval]


SFT = Glyph(GLYPHS[0], None)


def glyph(slot: int) -> Glyph:
    """The marker of a run in the page's text, in the run's colour."""
    return Glyph(GLYPHS[slot % len(GLYPHS)], slot % COLOURS)


def by_iteration(lines: list[tuple[int, list[Interval]]], limits: tuple[float, float] | None = None) -> Markup:
    """One value by iteration for every run, given as (slot, values); `limits` are those of the vertical axis.

    Runs stand a little apart so that no interval hides another.
    """
    count = len(lines)
    moved = []
    for i, (slot, values) in enumerate(lines):
        shift = (i - (count - 1) / 2) * min(0.07, 0.3 / max(count, 1))
        xs = [_exactly(n + (shift if n else 0)) for n in range(len(values))]
        moved.append(Line(slot, xs, values))
    longest = max((len(values) for _, values in lines), default=1)
    return _chart(moved, "iteration", limits, ["SFT", *(str(n) for n in range(1, longest))], numbered=False)


def against(lines: list[Line], x_label: str) -> Markup:
    """One value against another, both with intervals; points carry their iteration's number."""
    return _chart(lines, x_label, None, None, numbered=True)


def common_limits(intervals: list[Interval]) -> tuple[float, float]:
    """Limits that hold all intervals with a little air, for panels that are compared with each other."""
    low, high = min(i["low"] for i in intervals), max(i["high"] for i in intervals)
    air = 0.06 * (high - low) or 0.05
    return low - air, high + air


def _exactly(value: float) -> Interval:
    """A value without uncertainty, such as an iteration's number."""
    return {"mean": value, "low": value, "high": value}


def _chart(
    lines: list[Line], x_label: str, limits: tuple[float, float] | None, ticks: list[str] | None, numbered: bool
) -> Markup:
    import matplotlib.style
    from matplotlib.figure import Figure

    with matplotlib.style.context(["default", SETTINGS]):
        figure = Figure(figsize=(4.6, 2.7), layout="constrained")
        axes = figure.add_subplot()
        for line in lines:
            _draw(axes, line, numbered)
        for line in lines:
            # Runs share their SFT policy: it is nobody's colour and lies on top.
            _mark(axes, line.xs[0], line.ys[0], INK, MARKERS[0])
        axes.set_xlabel(x_label)
        if ticks is not None:
            axes.set_xticks(range(len(ticks)), ticks)
            axes.set_xlim(-0.35, len(ticks) - 0.65)
        if limits is not None:
            axes.set_ylim(*limits)
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inline(drawn.getvalue())


def _draw(axes: "Axes", line: Line, numbered: bool) -> None:
    """A run's line, and its points but the first."""
    colour, marker = f"#a0000{line.slot % COLOURS}", MARKERS[line.slot % len(MARKERS)]
    axes.plot([x["mean"] for x in line.xs], [y["mean"] for y in line.ys], color=colour, linewidth=1.6, zorder=2)
    for n, (x, y) in enumerate(zip(line.xs[1:], line.ys[1:]), start=1):
        _mark(axes, x, y, colour, marker)
        if numbered and len(line.xs) > 2:
            place, offset = (x["mean"], y["mean"]), (5, -9)
            number = axes.annotate(str(n), place, offset, textcoords="offset points", color=colour, fontsize=8)
            number.set_fontweight("bold")


def _mark(axes: "Axes", x: Interval, y: Interval, colour: str, marker: str) -> None:
    """A point with its intervals."""
    axes.errorbar(
        [x["mean"]],
        [y["mean"]],
        xerr=_lengths(x) if x["low"] < x["high"] else None,
        yerr=_lengths(y) if y["low"] < y["high"] else None,
        color=colour,
        marker=marker,
        markersize=5.5,
        markeredgecolor=PAPER,
        markeredgewidth=0.8,
        elinewidth=1.3,
        zorder=3,
    )


def _lengths(value: Interval) -> list[list[float]]:
    """How far an interval reaches below and above its mean, as matplotlib takes it."""
    # A mean may lie a rounding error outside its own bootstrap interval, and matplotlib refuses negative lengths.
    return [[max(value["mean"] - value["low"], 0.0)], [max(value["high"] - value["mean"], 0.0)]]


def _inline(svg: str) -> Markup:
    """Matplotlib's file as an element of the page: colours and font from the page, no ids that nobody refers to."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>|<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.S)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r'<svg class="chart" \1 aria-hidden="true">', svg, count=1)
    svg = re.sub(r"font: ([^;\"]*?)px [^;\"]*", r"font: \1px var(--sans)", svg)
    svg = re.sub(r"#a0000(\d)", r"var(--run\1)", svg)
    for colour, name in NAMES.items():
        svg = svg.replace(colour, f"var(--{name})")
    # The only markup of the page that no template wrote. Matplotlib escapes the texts in it.
    return Markup(re.sub(r"\n\s*\n*", "\n", svg).strip())  # noqa: S704
