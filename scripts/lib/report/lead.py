"""What was learnt, in one paragraph: the numbers of the longest run, and its end against the ends of the others."""

from typing import NamedTuple

from scripts.lib.data import stats
from scripts.lib.report.format import Interval, Shown, interval, nats, percent, signed, title
from scripts.lib.report.read import LOG_RATIO, Benchmark, Facts, Run


class Move(NamedTuple):
    """Rewards by one labeller, of SFT and at the end of the longest run."""

    labeller: str
    start: Shown
    end: Shown


class Comparison(NamedTuple):
    """The longest run's end against another run's: the paired difference over prompts and what its interval tells.

    `prompts` is None where both ends answered the same prompts, otherwise the number of those that both answered.
    """

    run: str
    end: Shown
    gap: Shown
    verdict: str
    prompts: int | None


class Lead(NamedTuple):
    """The numbers of the paragraph; its words stand in lead.html.jinja.

    `highest` is the policy with the highest mean where that is not the last one. `distance` is None where the mean
    log-ratio is not the KL, `greedy` where nothing was decoded greedily or nothing else was.
    """

    prompts: int
    drawn: str
    run: str
    method: str
    iterations: int
    verb: str
    headline: Move
    change: Shown
    wins: Shown
    highest: str | None
    proxies: list[Move]
    distance: Shown | None
    greedy: Move | None
    comparisons: list[Comparison]


def of(facts: Facts, benchmark: Benchmark) -> Lead:
    """The paragraph's numbers: from the first mode, by the first labeller, with the second one as its proxy."""
    run, labeller, mode = facts.runs[0], benchmark.labellers[0], benchmark.modes[0]
    end = benchmark.summary(run.policies[-1], mode)

    def rewards(policy: str) -> Interval:
        value: Interval = benchmark.summary(policy, mode)["rewards"][labeller]
        return value

    def move(name: str, of_mode: str) -> Move:
        ends = [benchmark.summary(run.policies[n], of_mode)["rewards"][name] for n in (0, -1)]
        return Move(name, interval(ends[0]), interval(ends[1]))

    highest = max(run.policies, key=lambda policy: rewards(policy)["mean"])
    return Lead(
        prompts=benchmark.manifests[run.policies[0]]["counts"]["prompts"],
        drawn=benchmark.drawn,
        run=run.name,
        method=run.method,
        iterations=len(run.policies) - 1,
        verb=_verb(end["change"][labeller]),
        headline=move(labeller, mode),
        change=interval(end["change"][labeller], signed),
        wins=interval(end["win_rate"][labeller], percent),
        highest=title(highest) if highest != run.policies[-1] else None,
        proxies=[move(name, mode) for name in benchmark.labellers[1:2]],
        distance=interval(end["kl"], nats) if benchmark.distance != LOG_RATIO else None,
        greedy=move(labeller, "greedy") if benchmark.modes[1:] else None,
        comparisons=[_comparison(benchmark, run.policies[-1], other) for other in facts.runs[1:]],
    )


def _comparison(benchmark: Benchmark, ours: str, other: Run) -> Comparison:
    """A policy against another run's end, by the first labeller in the first mode."""
    theirs, mode, labeller = other.policies[-1], benchmark.modes[0], benchmark.labellers[0]
    mine, others = (benchmark.per_prompt(policy, mode, labeller) for policy in (ours, theirs))
    both = sorted(mine.keys() & others.keys())
    settings = benchmark.manifests[ours]["settings"]
    gaps = [mine[prompt] - others[prompt] for prompt in both]
    gap = stats.interval(gaps, settings["confidence"], settings["resamples"], settings["seed"])
    return Comparison(
        run=other.name,
        end=interval(benchmark.summary(theirs, mode)["rewards"][labeller]),
        gap=interval(gap, signed),
        verdict="above" if gap["low"] > 0 else "below" if gap["high"] < 0 else "not clearly apart from",
        prompts=len(both) if mine.keys() != others.keys() else None,
    )


def _verb(change: Interval) -> str:
    """What the rewards did, as far as the interval of their change tells."""
    return "rose" if change["low"] > 0 else "fell" if change["high"] < 0 else "did not clearly move"
