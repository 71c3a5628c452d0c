"""Every policy with its name and marker, in the order of the page, and the tables of their numbers."""

from typing import Any, NamedTuple

from scripts.lib.report import charts
from scripts.lib.report.charts import Glyph
from scripts.lib.report.format import Shown, interval, nats, percent, signed, tenths, title
from scripts.lib.report.read import LOG_RATIO, Benchmark, Run


class Policy(NamedTuple):
    """A policy as the page names it, and whether a run begins here."""

    path: str
    title: str
    glyph: Glyph
    begins: bool

    @property
    def is_sft(self) -> bool:
        """Whether it is what the others are compared with."""
        return self.path.startswith("sft/")


class Labelled(NamedTuple):
    """One labeller's numbers of a policy: rewards and, of all but SFT, their change and share of comparisons won."""

    rewards: Shown
    change: Shown | None
    wins: Shown | None


class Row(NamedTuple):
    """A policy's numbers."""

    policy: Policy
    labelled: list[Labelled]
    distance: Shown | None
    tokens: Shown
    truncated: str


class Table(NamedTuple):
    """All policies' numbers in one mode: how they were drawn, what the distance is called, and the rows."""

    how: str
    labellers: list[str]
    distance: str
    rows: list[Row]


def in_order(runs: list[Run]) -> list[Policy]:
    """Every policy once: those of SFT, then run by run."""
    policies = {path: Policy(path, title(path), charts.SFT, False) for path in (run.policies[0] for run in runs)}
    for run in runs:
        for n, path in enumerate(run.policies[1:]):
            policies[path] = Policy(path, title(path), charts.glyph(run.slot), n == 0)
    return list(policies.values())


def table(policies: list[Policy], benchmark: Benchmark, mode: str) -> Table:
    """Every policy's numbers in one mode."""
    sampled = mode == "sampled"
    rows = [_row(policy, benchmark.labellers, benchmark.summary(policy.path, mode)) for policy in policies]
    return Table(
        how=f"sampled {benchmark.temperature}" if sampled else "greedy decoding",
        labellers=benchmark.labellers,
        distance=benchmark.distance if sampled else LOG_RATIO,
        rows=rows,
    )


def _row(policy: Policy, labellers: list[str], summary: dict[str, Any]) -> Row:
    labelled = [
        Labelled(
            interval(summary["rewards"][labeller]),
            None if policy.is_sft else interval(summary["change"][labeller], signed),
            None if policy.is_sft else interval(summary["win_rate"][labeller], percent),
        )
        for labeller in labellers
    ]
    distance = None if policy.is_sft else interval(summary["kl"], nats)
    tokens, truncated = interval(summary["tokens"], tenths), percent(summary["truncated"]["mean"])
    return Row(policy, labelled, distance, tokens, truncated)
