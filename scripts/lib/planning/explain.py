"""What a build would do, told for people: jobs by rule and policy, first causes, what is shared, what it costs.

Pure functions of the plan, of the jobs that a dry run lists, and of the manifests and earlier runs on disk.
"""

import re
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from scripts.lib.planning import audit
from scripts.lib.planning.plan import Plan
from scripts.lib.stage import artifact
from scripts.lib.stage.errors import ConfigError, InputError

WIDTH = 110
NAMES = 8  # in one list, before "and N more"


@dataclass(frozen=True)
class Planned:
    """A job of a dry run: its rule, the artifact that it makes, and Snakemake's own reason for it."""

    rule: str
    artifact: str
    reason: str = ""


def planned(dry_run: str) -> list[Planned]:
    """The jobs that `snakemake -n` lists, without those that have no output, which are targets."""
    listed = []
    for block in re.split(r"^(?=(?:local)?(?:rule|checkpoint) \S+:$)", dry_run, flags=re.MULTILINE)[1:]:
        rule = re.match(r"(?:local)?(?:rule|checkpoint) (\S+):\n", block)
        fields = dict(re.findall(r"^    (output|reason): (.*)$", block, flags=re.MULTILINE))
        if rule and "output" in fields:
            listed.append(Planned(rule[1], fields["output"].split(", ")[0], fields.get("reason", "")))
    return listed


# Jobs by rule and policy


def table(plan: Plan, jobs: list[Planned]) -> list[str]:
    """How many jobs of each rule lie beneath each policy, by run; runs whose jobs look alike stand together."""
    ranks = {rule: i for i, rule in enumerate(dict.fromkeys(plan.maker(path)[0] for path in _all(plan)))}
    counts: dict[str, dict[str, dict[str, int]]] = {}
    for job in sorted(jobs, key=lambda job: ranks.get(job.rule, len(ranks))):
        run, column = _place(plan, job.artifact)
        row = counts.setdefault(run, {}).setdefault(job.rule, {})
        row[column] = row.get(column, 0) + 1
    alike: list[tuple[list[str], dict[str, dict[str, int]]]] = []
    for run in [name for name in ("", *plan.config.runs) if name in counts]:
        same = [names for names, rows in alike if run and "" not in names and rows == counts[run]]
        if same:
            same[0].append(run)
        else:
            alike.append(([run], counts[run]))
    used = {column for rows in counts.values() for row in rows.values() for column in row}
    columns = sorted(used, key=lambda name: (name != "common", name != "sft", len(name), name))
    width = max(len(job.rule) for job in jobs) + 2
    lines = [" " * width + "".join(f"{column:>8}" for column in columns)]
    for names, rows in alike:
        title = "all runs" if names == [""] else ", ".join(names)
        lines.append(f"{title}: each" if len(names) > 1 else title)
        for rule, row in rows.items():
            cells = "".join(f"{row.get(column, ''):>8}" for column in columns)
            lines.append(f"  {rule:<{width - 2}}{cells}".rstrip())
    return lines


def _all(plan: Plan) -> list[str]:
    return plan.artifacts(*plan.asked("all"))


def _place(plan: Plan, path: str) -> tuple[str, str]:
    """Run and column of an artifact: the policy that it lies beneath; what lies beneath none is common."""
    parts = path.removeprefix(plan.root + "/").split("/")
    if parts[0] == "runs":
        return parts[1], parts[2]
    return "", "sft" if parts[0] == "sft" else "common"


# First causes


@dataclass(frozen=True)
class Causes:
    """Why jobs run: artifacts by reason in words, rules of what is not made yet with their counts, and the rest."""

    changed: dict[str, list[str]]
    not_made: dict[str, int]
    follow: int


def causes(plan: Plan, jobs: list[Planned]) -> Causes:
    """Sort jobs into those that have a reason of their own and those that only follow from another."""
    run = {job.artifact for job in jobs}
    changed: dict[str, list[str]] = {}
    not_made: dict[str, int] = {}
    follow = 0
    for job in jobs:
        try:
            words, below = audit.differences(plan, job.artifact), plan.inputs(job.artifact)
        except ConfigError:  # no artifact of the grammar; only Snakemake knows
            words, below = [], []
        if words == [audit.NOT_MADE]:
            not_made[job.rule] = not_made.get(job.rule, 0) + 1
        elif words:
            changed.setdefault("; ".join(words), []).append(_inside(plan, job.artifact))
        elif run & set(below):
            follow += 1
        else:
            changed.setdefault(f"Snakemake says: {job.reason}", []).append(_inside(plan, job.artifact))
    return Causes(changed, not_made, follow)


def overlooked(plan: Plan, targets: list[str], jobs: list[Planned]) -> list[str]:
    """Artifacts beneath the targets that differ from the plan and are not to be made again, in one line if any.

    So it is where Snakemake's records were lost, or a difference was approved by `snakemake --touch`.
    """
    run = {job.artifact for job in jobs}
    there = [path for path in plan.artifacts(*targets) if path not in run and audit.made(path)]
    count = sum(bool(audit.differences(plan, path)) for path in there)
    if not count:
        return []
    return [f"{count} artifact{'s' * (count > 1)} would stay although the plan differs: see `snakemake audit`"]


def causes_in_words(causes: Causes) -> list[str]:
    """One line for each reason."""
    lines = [f"{names_in_words(gathered(names))}: {words}" for words, names in causes.changed.items()]
    if causes.not_made:
        lines.append(f"not made yet: {', '.join(f'{count} {rule}' for rule, count in causes.not_made.items())}")
    if causes.follow:
        lines.append(f"the rest follows from these: {jobs_in_words(causes.follow)}")
    return [line for text in lines for line in textwrap.wrap(text, WIDTH, subsequent_indent="    ")]


def jobs_in_words(count: int) -> str:
    """`1 job`, `2 jobs`."""
    return f"{count} job{'s' * (count != 1)}"


def gathered(names: Iterable[str]) -> list[str]:
    """Names that differ in the iteration only as one: runs/main/iter{1,2,3}/policy."""
    groups: dict[str, list[str]] = {}
    for name in names:
        number = re.match(r"runs/[^/]+/iter([0-9]+)", name)
        pattern = re.sub(r"(?<=/iter)[0-9]+", "*", name, count=1) if number else name
        groups.setdefault(pattern, []).append(number[1] if number else "")
    return [
        pattern.replace("*", numbers[0] if len(numbers) == 1 else f"{{{','.join(numbers)}}}")
        for pattern, numbers in groups.items()
    ]


def names_in_words(names: list[str]) -> str:
    """A list that stays readable."""
    return ", ".join(names[:NAMES]) + (f" and {len(names) - NAMES} more" if len(names) > NAMES else "")


def _inside(plan: Plan, path: str) -> str:
    return path.removeprefix(plan.root + "/").removesuffix(".parquet")


# What is shared


def shared(plan: Plan, targets: list[str], jobs: list[Planned]) -> list[str]:
    """What lies beneath the targets and serves other runs too, one line for each set of runs.

    The targets' own run is left out of the sets where they are of one run.
    """
    users: dict[str, list[str]] = {}
    for name in plan.config.runs:
        for path in plan.artifacts(*map(plan.policy, plan.policies([name])), *plan.evaluations([name])):
            users.setdefault(path, []).append(name)
    targeted = {run for run in (_place(plan, path)[0] for path in targets) if run}
    run = {job.artifact for job in jobs}
    groups: dict[tuple[bool, tuple[str, ...]], dict[str, None]] = {}
    for path in plan.artifacts(*targets):
        others = tuple(name for name in users.get(path, []) if targeted != {name})
        if len(others) > (0 if len(targeted) == 1 else 1):
            groups.setdefault((path in run, others), {})[_short(plan, path)] = None
    lines = []
    for (made, others), names in sorted(groups.items(), key=lambda item: not item[0][0]):
        verb = "made now" if made else "kept"
        also = " also" if len(targeted) == 1 else ""
        lines.append(f"{verb}, and{also} used by {', '.join(others)}: {names_in_words(list(names))}")
    return [line for text in lines for line in textwrap.wrap(text, WIDTH, subsequent_indent="    ")]


def _short(plan: Plan, path: str) -> str:
    """A model by its folder's name, shards together."""
    return re.sub(r"/(policy|model|[0-9]+)$", "", _inside(plan, path))


# What it costs


@dataclass(frozen=True)
class Cost:
    """Seconds of all jobs, seconds of the longest chain, GPU-hours, bytes written, and jobs without any history.

    GPU-hours and bytes are None where no earlier run tells them.
    """

    seconds: float
    longest: float
    gpu_hours: float | None
    bytes: float | None
    unknown: int


def cost(plan: Plan, targets: list[str], jobs: list[Planned]) -> Cost:
    """What the jobs took when they last ran; where an artifact is new, the median of its rule's others."""
    order = plan.artifacts(*_all(plan), *targets)
    runs = {path: facts for path in order if (facts := _last_run(path))}
    of_rule: dict[str, list[dict[str, float]]] = {}
    for path, facts in runs.items():
        of_rule.setdefault(plan.maker(path)[0], []).append(facts)
    known: dict[str, dict[str, float]] = {}
    for job in jobs:
        alike = of_rule.get(job.rule, [])
        if job.artifact in runs:
            known[job.artifact] = runs[job.artifact]
        elif alike:
            names = {name for facts in alike for name in facts}
            known[job.artifact] = {name: median(facts[name] for facts in alike if name in facts) for name in names}
    finished: dict[str, float] = {}
    for path in [path for path in order if path in known]:
        before = [finished[below] for below in plan.inputs(path) if below in finished]
        finished[path] = known[path]["seconds"] + max(before, default=0)
    gpu = [facts["seconds"] * facts["gpus"] / 3600 for facts in known.values() if "gpus" in facts]
    size = [facts["bytes"] for facts in known.values() if "bytes" in facts]
    return Cost(
        seconds=sum(facts["seconds"] for facts in known.values()),
        longest=max(finished.values(), default=0),
        gpu_hours=sum(gpu) if gpu else None,
        bytes=sum(size) if size else None,
        unknown=len(jobs) - len(known),
    )


def _last_run(path: str) -> dict[str, float]:
    """The figures of the run that last made an artifact; nothing where there are none that can be read."""
    stem = artifact.stem(Path(path))
    try:
        facts = artifact.read_json(stem.with_name(stem.name + ".run.json"))
    except InputError:
        return {}
    figures = {name: facts[name] for name in ("seconds", "gpus", "bytes") if isinstance(facts.get(name), int | float)}
    return figures if "seconds" in figures else {}


def cost_in_words(cost: Cost, jobs: int) -> str:
    """One line."""
    if cost.unknown == jobs:
        return "time: not known, nothing like it has run here yet"
    parts = [f"time: {duration(cost.seconds)} of work as it went last, {duration(cost.longest)} in the longest chain"]
    if cost.gpu_hours:
        parts.append(f"{cost.gpu_hours:.2f} GPU-hours")
    if cost.bytes is not None:
        parts.append(f"{cost.bytes / 1e6:.1f} MB")
    if cost.unknown:
        parts.append(f"without {jobs_in_words(cost.unknown)} of which nothing is known")
    return "; ".join(parts)


def duration(seconds: float) -> str:
    """`45 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
