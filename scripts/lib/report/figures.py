"""The charts of a benchmark: rewards, length and distance from SFT by iteration, and rewards against that distance."""

from functools import reduce
from operator import getitem
from typing import NamedTuple

from markupsafe import Markup

from scripts.lib.report import charts
from scripts.lib.report.format import Interval
from scripts.lib.report.read import Benchmark, Run


class Figure(NamedTuple):
    """A chart with its caption: what it shows, and how."""

    what: str
    how: str
    chart: Markup


def of(runs: list[Run], benchmark: Benchmark) -> list[Figure]:
    """All charts of a benchmark, in the order of the page."""
    main = benchmark.modes[0]
    distance, tokens = (_by_iteration(runs, benchmark, main, key) for key in ("kl", "tokens"))
    return [
        *(figure for labeller in benchmark.labellers for figure in _rewards(runs, benchmark, labeller)),
        *(_against_distance(runs, benchmark, labeller) for labeller in benchmark.labellers),
        Figure(benchmark.distance, f", nats, {main}, by iteration", charts.by_iteration(distance)),
        Figure("Tokens per response", f", {main}, by iteration", charts.by_iteration(tokens)),
    ]


def _by_iteration(runs: list[Run], benchmark: Benchmark, mode: str, *keys: str) -> list[tuple[int, list[Interval]]]:
    """(slot, values of the policies in order) of every run; `keys` lead to the value in a manifest's summary."""

    def value(policy: str) -> Interval:
        return reduce(getitem, keys, benchmark.summary(policy, mode))

    return [(run.slot, [value(policy) for policy in run.policies]) for run in runs]


def _rewards(runs: list[Run], benchmark: Benchmark, labeller: str) -> list[Figure]:
    """One labeller's rewards by iteration, a panel for each mode, all to the same scale."""
    lines = {mode: _by_iteration(runs, benchmark, mode, "rewards", labeller) for mode in benchmark.modes}
    limits = charts.common_limits([value for panel in lines.values() for _, values in panel for value in values])
    return [
        Figure(labeller, f", {mode}, by iteration", charts.by_iteration(lines[mode], limits))
        for mode in benchmark.modes
    ]


def _against_distance(runs: list[Run], benchmark: Benchmark, labeller: str) -> Figure:
    """One labeller's rewards against the distance from SFT."""
    main = benchmark.modes[0]
    distances = _by_iteration(runs, benchmark, main, "kl")
    rewards = _by_iteration(runs, benchmark, main, "rewards", labeller)
    lines = [charts.Line(slot, xs, ys) for (slot, xs), (_, ys) in zip(distances, rewards)]
    drawn = charts.against(lines, f"{benchmark.distance}, nats per response")
    return Figure(labeller, f", {main}, against the distance from SFT", drawn)
