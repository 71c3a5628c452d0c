"""Where the lines of the page's two drawings lie: the snake beside the title, and the graph of stages around it.

All lengths are in units of the drawing's viewBox, written with one digit after the point. The template loop.html.jinja
draws.
"""

import math
from typing import NamedTuple

Point = tuple[float, float]

CENTRE, RADIUS = (320, 270), 150
RING = ("policy", "rollouts", "rewards", "pairs", "reference")
AROUND = {
    "base": (70, 40),
    "demonstrations": (76, 120),
    "sft": (200, 62),
    "prompts": (572, 140),
    "preferences": (572, 430),
    "reward model": (572, 345),
    "evaluation": (320, 250),
    "report": (320, 312),
}
ARROWS = (
    ("base", "sft"),
    ("demonstrations", "sft"),
    ("sft", "policy"),
    ("prompts", "rollouts"),
    ("preferences", "reward model"),
    ("reward model", "rewards"),
    ("policy", "evaluation"),
    ("evaluation", "report"),
)


class Snake(NamedTuple):
    """A snake: the outline of its body, where its head lies and is turned to, the head's path, and its eye."""

    body: str
    x: str
    y: str
    turned: str
    head: str
    eye_x: str
    eye_y: str
    eye_radius: str


class Node(NamedTuple):
    """A stage in its box. `x` and `text_x` are the left edge and the middle, `text_y` is the base line."""

    name: str
    on_ring: bool
    x: str
    y: str
    width: str
    text_x: str
    text_y: str


class Arrow(NamedTuple):
    """A straight line from the edge of one box to the edge of another."""

    x1: str
    y1: str
    x2: str
    y2: str


class Graph(NamedTuple):
    """The graph of stages: what is made once feeds a ring that turns once per iteration."""

    snake: Snake
    arrows: list[Arrow]
    nodes: list[Node]


def mark() -> Snake:
    """The snake alone, beside the title, in a box of 64 by 64."""
    return snake(32, 33, 23, 8, 15)


def graph(methods: list[str]) -> Graph:
    """The graph of stages, in a box of 640 by 470; `methods` train the next policy."""
    ring = [*RING, " / ".join(methods) or "dpo"]
    places: dict[str, Point] = {}
    for i, name in enumerate(ring):
        angle = math.radians(-90 + 60 * i)
        places[name] = (CENTRE[0] + RADIUS * math.cos(angle), CENTRE[1] + RADIUS * math.sin(angle))
    places |= AROUND
    arrows = [_arrow(places[start], places[end], _width(start), _width(end)) for start, end in ARROWS]
    nodes = [_node(name, name in ring, place) for name, place in places.items()]
    return Graph(snake(*CENTRE, RADIUS, 20, 26), arrows, nodes)


def snake(x: float, y: float, radius: float, thickness: float, gap: float) -> Snake:
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
    place = (_tenths(x + radius * math.cos(angle)), _tenths(y + radius * math.sin(angle)))
    t = thickness
    eye = (_tenths(t * 0.35), _tenths(-t * 0.25), _tenths(t * 0.13))
    return Snake(body, *place, f"{3 - gap:g}", _head(t), *eye)


def _head(t: float) -> str:
    """The path of a head that looks to the right, on a neck of thickness `t` around the origin."""
    return (
        f"M{-t:.1f} {-t / 2:.1f} C{-t / 3:.1f} {-t:.1f} {t:.1f} {-t * 0.75:.1f} {t * 1.35:.1f} {-t * 0.12:.1f} "
        f"L{t * 0.75:.1f} {t * 0.05:.1f} L{t * 1.3:.1f} {t * 0.25:.1f} "
        f"C{t * 0.9:.1f} {t * 0.8:.1f} {-t / 3:.1f} {t:.1f} {-t:.1f} {t / 2:.1f} Z"
    )


def _node(name: str, on_ring: bool, centre: Point) -> Node:
    (x, y), width = centre, _width(name)
    box = (_tenths(x - width / 2), _tenths(y - 16), _tenths(width))
    return Node(name, on_ring, *box, _tenths(x), _tenths(y + 5))


def _width(name: str) -> float:
    return 30 + 8.1 * len(name)


def _arrow(start: Point, end: Point, start_width: float, end_width: float) -> Arrow:
    """A straight arrow between two boxes' edges."""

    def edge(centre: Point, other: Point, width: float) -> Point:
        dx, dy = other[0] - centre[0], other[1] - centre[1]
        scale = min((width / 2 + 3) / abs(dx) if dx else math.inf, 19 / abs(dy) if dy else math.inf)
        return centre[0] + dx * scale, centre[1] + dy * scale

    (ax, ay), (bx, by) = edge(start, end, start_width), edge(end, start, end_width)
    return Arrow(*map(_tenths, (ax, ay, bx, by)))


def _tenths(value: float) -> str:
    return f"{value:.1f}"
