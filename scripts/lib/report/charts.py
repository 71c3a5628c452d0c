"""How the report looks: its colours, its style sheet, its charts, and the drawing of the loop.

Everything is inline SVG that takes its colours from the page's CSS variables, so one drawing serves light, dark and
print. The same numbers give the same bytes: no dates, no random ids, no fonts of the machine.
"""

import io
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from html import escape

Interval = dict[str, float]

LONGEST_TEXT = 900
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GLYPHS = ("●", "■", "▲", "◆", "▼", "✚", "✖")
LIGHT = ("#1f6f54", "#c2541b", "#2b5fa8", "#8b4a9c", "#a07a08", "#b8325f", "#0e8087", "#5b6270")
DARK = ("#6fcf9f", "#f2955c", "#86b3f0", "#cf97e0", "#dcb84a", "#f08aac", "#5fccd0", "#aab2c0")
# Matplotlib knows no CSS variables: it draws in these colours, which are then replaced by var(--…).
INK, MUTED, GRID, PAPER = "#b00000", "#b00001", "#b00002", "#b00003"
NAMES = {INK: "ink", MUTED: "muted", GRID: "rule", PAPER: "paper"}


@dataclass(frozen=True)
class Line:
    """One run in a chart: its colour slot and its points, the SFT policy first."""

    slot: int
    xs: list[Interval]
    ys: list[Interval]


# Words, numbers, tables


def document(title: str, body: str) -> str:
    """The whole page, which loads nothing."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        # What models wrote is escaped; if it ever were not, nothing in it could run or load.
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>{body}</main></body></html>\n"
    )


def number(value: float | None, digits: int = 3) -> str:
    """A number for people, with a true minus sign; a dash where there is none."""
    if value is None:
        return "–"
    text = f"{value:.{digits}f}"
    return (text.removeprefix("-") if float(text) == 0 else text).replace("-", "−")


def title(policy: str) -> str:
    """A policy's name for people."""
    parts = policy.split("/")
    return f"SFT {parts[1]}" if parts[0] == "sft" else f"{parts[1]} {parts[2]}"


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


def interval(value: Interval, shown: Callable[[float], str] = number) -> str:
    """A mean with its interval."""
    low, high = (shown(value[end]).removesuffix(" %") for end in ("low", "high"))
    mean = shown(value["mean"])
    return f'<span class="value">{mean} <span class="interval">[{low}, {high}]</span></span>'


def header(names: list[str], left: int = 1) -> str:
    """One row of column names."""
    return (
        "<tr>"
        + "".join(f"<th{' class=left' if n < left else ''}>{name}</th>" for n, name in enumerate(names))
        + "</tr>"
    )


def table(head: str, rows: list[list[str]], left: int = 1, breaks: list[int] | None = None) -> str:
    """A table that scrolls by itself on a phone; its first `left` columns are words."""
    body = []
    for i, row in enumerate(rows):
        cells = "".join(f'<td class="left">{c}</td>' if n < left else f"<td>{c}</td>" for n, c in enumerate(row))
        body.append(f"<tr{' class=first' if i in (breaks or []) else ''}>{cells}</tr>")
    return f'<div class="scroll"><table><thead>{head}</thead><tbody>{"".join(body)}</tbody></table></div>'


def clipped(text: str) -> str:
    """Untrusted text, escaped; what is cut is counted."""
    cut = len(text) - LONGEST_TEXT
    return (
        escape(text)
        if cut <= 0
        else f'{escape(text[:LONGEST_TEXT])}… <span class="muted">({cut} more characters)</span>'
    )


def figure(caption: str, chart: str) -> str:
    """A chart with its caption."""
    return f"<figure><figcaption>{caption}</figcaption>{chart}</figure>"


# Charts


def glyph(slot: int) -> str:
    """The marker of a run in the page's text, in the run's colour."""
    return f'<span class="glyph" style="color:var(--run{slot % len(LIGHT)})">{GLYPHS[slot % len(GLYPHS)]}</span>'


def by_iteration(lines: list[tuple[int, list[Interval]]], limits: tuple[float, float] | None = None) -> str:
    """One value by iteration for every run; runs stand a little apart so that no interval hides another."""
    count = len(lines)
    moved = []
    for i, (slot, values) in enumerate(lines):
        shift = (i - (count - 1) / 2) * min(0.07, 0.3 / max(count, 1))
        xs = [exactly(n + (shift if n else 0)) for n in range(len(values))]
        moved.append(Line(slot, xs, values))
    longest = max((len(values) for _, values in lines), default=1)
    return _chart(moved, "iteration", limits, ["SFT", *(str(n) for n in range(1, longest))], numbered=False)


def against(lines: list[Line], x_label: str) -> str:
    """One value against another, both with intervals; points carry their iteration's number."""
    return _chart(lines, x_label, None, None, numbered=True)


def exactly(value: float) -> Interval:
    """A value without uncertainty, such as an iteration's number."""
    return {"mean": value, "low": value, "high": value}


def common_limits(intervals: list[Interval]) -> tuple[float, float]:
    """Limits that hold all intervals with a little air, for panels that are compared with each other."""
    low, high = min(i["low"] for i in intervals), max(i["high"] for i in intervals)
    air = 0.06 * (high - low) or 0.05
    return low - air, high + air


def _errors(intervals: list[Interval]) -> list[list[float]]:
    # A mean may lie a rounding error outside its own bootstrap interval, and matplotlib refuses negative lengths.
    below = [max(i["mean"] - i["low"], 0.0) for i in intervals]
    return [below, [max(i["high"] - i["mean"], 0.0) for i in intervals]]


def _chart(
    lines: list[Line], x_label: str, limits: tuple[float, float] | None, ticks: list[str] | None, numbered: bool
) -> str:
    import matplotlib.style
    from matplotlib.figure import Figure

    settings = {
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
    with matplotlib.style.context(["default", settings]):
        figure = Figure(figsize=(4.6, 2.7), layout="constrained")
        axes = figure.add_subplot()
        for line in lines:
            _draw(axes, line, numbered)
        for line in lines:
            # Runs share their SFT policy: it is nobody's colour and lies on top.
            _mark(axes, line.xs[0], line.ys[0], INK, "o")
        axes.set_xlabel(x_label)
        if ticks is not None:
            axes.set_xticks(range(len(ticks)), ticks)
            axes.set_xlim(-0.35, len(ticks) - 0.65)
        if limits is not None:
            axes.set_ylim(*limits)
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inline(drawn.getvalue())


def _draw(axes: object, line: Line, numbered: bool) -> None:
    colour, marker = f"#a0000{line.slot % len(LIGHT)}", MARKERS[line.slot % len(MARKERS)]
    xs, ys = [x["mean"] for x in line.xs], [y["mean"] for y in line.ys]
    axes.plot(xs, ys, color=colour, linewidth=1.6, zorder=2)  # type: ignore[attr-defined]
    for n, (x, y) in enumerate(zip(line.xs, line.ys)):
        if n:
            _mark(axes, x, y, colour, marker)
        if n and numbered and len(xs) > 2:
            where = (x["mean"], y["mean"])
            axes.annotate(  # type: ignore[attr-defined]
                str(n), where, (5, -9), textcoords="offset points", color=colour, fontsize=8, fontweight="bold"
            )


def _mark(axes: object, x: Interval, y: Interval, colour: str, marker: str) -> None:
    axes.errorbar(  # type: ignore[attr-defined]
        [x["mean"]],
        [y["mean"]],
        xerr=_errors([x]) if x["low"] < x["high"] else None,
        yerr=_errors([y]) if y["low"] < y["high"] else None,
        color=colour,
        marker=marker,
        markersize=5.5,
        markeredgecolor=PAPER,
        markeredgewidth=0.8,
        elinewidth=1.3,
        zorder=3,
    )


def _inline(svg: str) -> str:
    """Matplotlib's file as an element of the page: colours and font from the page, no ids that nobody refers to."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>|<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.S)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r'<svg class="chart" \1 aria-hidden="true">', svg, count=1)
    svg = re.sub(r"font: ([^;\"]*?)px [^;\"]*", r"font: \1px var(--sans)", svg)
    svg = re.sub(r"#a0000(\d)", r"var(--run\1)", svg)
    for colour, name in NAMES.items():
        svg = svg.replace(colour, f"var(--{name})")
    return re.sub(r"\n\s*\n*", "\n", svg).strip()


# The loop


def snake(x: float, y: float, radius: float, thickness: float, gap: float) -> str:
    """A snake around (x, y), clockwise from its tail at the top to its head, `gap` degrees before the top."""
    steps = 90
    outer, inner = [], []
    for i in range(steps + 1):
        part = i / steps
        angle = math.radians(-83 + part * (352 - gap))
        half = thickness / 2 * (0.12 + 0.88 * math.sin(min(part * 1.5, 1.0) * math.pi / 2))
        outer.append((x + (radius + half) * math.cos(angle), y + (radius + half) * math.sin(angle)))
        inner.append((x + (radius - half) * math.cos(angle), y + (radius - half) * math.sin(angle)))
    body = " ".join(f"{px:.1f},{py:.1f}" for px, py in outer + inner[::-1])
    angle = math.radians(270 - gap)
    hx, hy = x + radius * math.cos(angle), y + radius * math.sin(angle)
    t = thickness
    return (
        f'<polygon class="snake" points="{body}"/>'
        f'<g transform="translate({hx:.1f} {hy:.1f}) rotate({3 - gap:g})">'
        f'<path class="snake" d="M{-t:.1f} {-t / 2:.1f} C{-t / 3:.1f} {-t:.1f} {t:.1f} {-t * 0.75:.1f} {t * 1.35:.1f} '
        f"{-t * 0.12:.1f} L{t * 0.75:.1f} {t * 0.05:.1f} L{t * 1.3:.1f} {t * 0.25:.1f} C{t * 0.9:.1f} {t * 0.8:.1f} "
        f'{-t / 3:.1f} {t:.1f} {-t:.1f} {t / 2:.1f} Z"/>'
        f'<circle class="eye" cx="{t * 0.35:.1f}" cy="{-t * 0.25:.1f}" r="{t * 0.13:.1f}"/></g>'
    )


def mark() -> str:
    """The snake alone, beside the title."""
    return f'<svg class="mark" viewBox="0 0 64 64" aria-hidden="true">{snake(32, 33, 23, 8, 15)}</svg>'


def loop(methods: list[str]) -> str:
    """The graph of stages: what is made once feeds a ring that turns once per iteration."""
    x, y, radius = 320, 270, 150
    ring = ["policy", "rollouts", "rewards", "pairs", "reference", " / ".join(methods) or "dpo"]
    at = {}
    for i, name in enumerate(ring):
        angle = math.radians(-90 + 60 * i)
        at[name] = (x + radius * math.cos(angle), y + radius * math.sin(angle))
    at |= {"base": (70, 40), "demonstrations": (76, 120), "sft": (200, 62)}
    at |= {"prompts": (572, 140), "preferences": (572, 430), "reward model": (572, 345)}
    at |= {"evaluation": (x, 250), "report": (x, 312)}
    arrows = [("base", "sft"), ("demonstrations", "sft"), ("sft", "policy"), ("prompts", "rollouts")]
    arrows += [("preferences", "reward model"), ("reward model", "rewards"), ("policy", "evaluation")]
    arrows += [("evaluation", "report")]
    parts = [
        '<svg class="loop" viewBox="0 0 640 470" role="img" aria-label="Graph of stages">'
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path class="tip" d="M0 0 L8 4 L0 8 Z"/></marker></defs>',
        snake(x, y, radius, 20, 26),
    ]
    parts += [_arrow(at[start], at[end], _width(start), _width(end)) for start, end in arrows]
    for name, (cx, cy) in at.items():
        width, kind = _width(name), "node ring" if name in ring else "node"
        box = f'x="{cx - width / 2:.1f}" y="{cy - 16:.1f}" width="{width:.1f}" height="32" rx="16"'
        parts.append(f'<g class="{kind}"><rect {box}/><text x="{cx:.1f}" y="{cy + 5:.1f}">{escape(name)}</text></g>')
    return "".join(parts) + "</svg>"


def _width(name: str) -> float:
    return 30 + 8.1 * len(name)


def _arrow(start: tuple[float, float], end: tuple[float, float], start_width: float, end_width: float) -> str:
    """A straight arrow between two nodes' edges."""

    def edge(centre: tuple[float, float], other: tuple[float, float], width: float) -> tuple[float, float]:
        dx, dy = other[0] - centre[0], other[1] - centre[1]
        scale = min((width / 2 + 3) / abs(dx) if dx else math.inf, 19 / abs(dy) if dy else math.inf)
        return centre[0] + dx * scale, centre[1] + dy * scale

    (ax, ay), (bx, by) = edge(start, end, start_width), edge(end, start, end_width)
    return f'<line class="arrow" x1="{ax:.1f}" y1="{ay:.1f}" x2="{bx:.1f}" y2="{by:.1f}" marker-end="url(#tip)"/>'


def _variables(colours: tuple[str, ...]) -> str:
    return "".join(f"--run{i}:{colour};" for i, colour in enumerate(colours))


STYLE = f"""
:root {{ color-scheme: light dark;
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
  --serif: "Iowan Old Style", "Palatino Linotype", Palatino, Georgia, "DejaVu Serif", serif;
  --paper: #fdfcf9; --card: #f6f4ee; --ink: #1c1e21; --muted: #666a70; --rule: #dedbd2; --snake: #2f7a5c;
  {_variables(LIGHT)} }}
@media screen and (prefers-color-scheme: dark) {{ :root {{
  --paper: #16181a; --card: #1f2225; --ink: #eceae4; --muted: #a2a6ab; --rule: #3a3e42; --snake: #5fb48d;
  {_variables(DARK)} }} }}
* {{ box-sizing: border-box; }}
body {{ margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 var(--sans); }}
main {{ max-width: 1120px; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }}
header {{ display: flex; gap: 1rem; align-items: center; }}
.mark {{ width: 60px; height: 60px; flex: none; }}
h1, h2, h3 {{ font-family: var(--serif); font-weight: 600; line-height: 1.2; break-after: avoid; }}
h1 {{ margin: 0; font-size: 2.3rem; }}
h2 {{ margin: 3.2rem 0 .4rem; padding-top: 1.1rem; border-top: 1px solid var(--rule); font-size: 1.55rem; }}
h3 {{ margin: 1.8rem 0 .4rem; font-size: 1.1rem; }}
header p, .note {{ margin: .1rem 0 0; color: var(--muted); }}
.note {{ max-width: 50rem; font-size: .88rem; }}
.lead {{ max-width: 50rem; margin: 1.6rem 0 .6rem; font: 1.22rem/1.6 var(--serif); }}
.lead b {{ font-weight: 600; }}
.lead .interval {{ font-size: .8em; }}
.interval, .muted {{ color: var(--muted); }}
.value, .interval {{ white-space: nowrap; }} table, .value, .numbers {{ font-variant-numeric: tabular-nums; }}
.legend {{ display: flex; flex-wrap: wrap; gap: .2rem 1.4rem; margin: 1rem 0 .2rem; font-size: .92rem; }}
.glyph {{ margin-right: .35em; }}
.charts {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 430px), 1fr)); gap: 1rem 2rem; }}
figure {{ margin: .8rem 0 0; break-inside: avoid; }}
figcaption {{ font-size: .92rem; }}
svg {{ display: block; width: 100%; height: auto; }}
svg.chart * {{ stroke-linejoin: round; stroke-linecap: butt; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; width: 100%; margin-top: .6rem; font-size: .86rem; }}
th, td {{ padding: .38rem .5rem; text-align: right; vertical-align: top; border-bottom: 1px solid var(--rule); }}
th {{ font-weight: 500; color: var(--muted); vertical-align: bottom; }}
th.group {{ text-align: center; color: var(--ink); }}
th:first-child, td:first-child, .left {{ text-align: left; white-space: nowrap; }}
th:first-child, td:first-child {{ position: sticky; left: 0; background: var(--paper); padding-left: 0; }}
td .interval {{ display: block; font-size: .8em; }}
tr.first td {{ border-top: 2px solid var(--rule); }}
code, .digest {{ font: .86em/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }}
.sample {{ margin: 1.2rem 0 2rem; }}
.turn {{ margin: 0 0 .5rem; padding: .55rem .9rem; border-left: 3px solid var(--snake); background: var(--card);
  white-space: pre-wrap; overflow-wrap: anywhere; break-inside: avoid; }}
.role {{ display: block; font-size: .75rem; color: var(--muted); }}
.row {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 290px), 1fr)); gap: .5rem; }}
.row + .row, .turn + .row {{ margin-top: .5rem; }}
.answer {{ display: flex; flex-direction: column; padding: .5rem .8rem; border: 1px solid var(--rule);
  border-radius: 6px; font-size: .92rem; break-inside: avoid; }}
.answer > div {{ font-size: .8rem; }}
.answer p {{ flex: 1; margin: .2rem 0 .4rem; white-space: pre-wrap; overflow-wrap: anywhere; }}
.numbers {{ display: flex; flex-wrap: wrap; justify-content: space-between; gap: .6rem; color: var(--muted); }}
.numbers b {{ color: var(--ink); font-weight: 600; }}
.loop {{ max-width: 640px; margin: 1rem auto 0; }}
.snake {{ fill: var(--snake); }} .eye {{ fill: var(--paper); }}
.node rect {{ fill: var(--card); stroke: var(--rule); }}
.node.ring rect {{ fill: var(--paper); stroke: var(--snake); stroke-width: 2; }}
.node text {{ font: 15px var(--sans); text-anchor: middle; fill: var(--ink); }}
.arrow {{ stroke: var(--muted); stroke-width: 1.5; }} .tip {{ fill: var(--muted); }}
footer {{ margin-top: 3rem; font-size: .86rem; }}
@media print {{ :root {{ --paper: #fff; }} body {{ font-size: 10pt; }} main {{ max-width: none; padding: 0; }}
  .scroll {{ overflow: visible; }} .charts {{ grid-template-columns: 1fr 1fr; }}
  .row {{ grid-template-columns: repeat(3, 1fr); }} th, td {{ padding: .2rem .3rem; }} table {{ font-size: 7.5pt; }} }}
@media (max-width: 600px) {{ h1 {{ font-size: 1.7rem; }} main {{ padding: 1.4rem 1rem; }}
  .lead {{ font-size: 1.08rem; }} }}
"""
