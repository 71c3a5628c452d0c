"""What a build would lose: shown before its first job, and lost only if a person agrees.

Snakemake deletes a job's outputs before the job starts, and a step discards what an interrupted one of other settings
has saved. So a changed setting, Enter and Ctrl-C would be enough to lose weights that took days.
"""

import json
import sys
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from scripts.lib.planning import explain, paths
from scripts.lib.planning.plan import Plan
from scripts.lib.stage import artifact, work
from scripts.lib.stage.errors import ConfigError, InputError

HINT = (
    "Hint: `make plan` says why. To keep it, give the change a run of its own (see README), or its own `results`; "
    "to lose it, add --config replace=true."
)


def weights(plan: Plan, artifacts: Iterable[str]) -> list[str]:
    """Those of the artifacts that are finished trained weights on disk; making them again deletes what is there.

    Weights without a manifest are not finished, and pruned ones are not there: nothing is lost with either.
    """
    trained = [path for path in artifacts if paths.is_folder(path) and plan.card(path).compute]
    return [path for path in trained if Path(path).is_dir() and artifact.manifest_path(Path(path)).is_file()]


def in_words(plan: Plan, path: str, now: datetime) -> str:
    """`replaces: runs/main/iter1/policy, trained 3 days ago, 41.0 GPU-hours`, as far as its run file tells."""
    parts = [f"replaces: {path.removeprefix(f'{plan.root}/')}"]
    try:
        facts = artifact.read_json(artifact.run_path(Path(path)))
        parts.append(f"trained {_ago(now - datetime.fromisoformat(facts['finished']))}")
        hours = facts.get("gpu_seconds", 0) / 3600
        parts.append(f"{hours:.1f} GPU-hours" if hours else f"{explain.duration(facts['seconds'])} of work")
    except (InputError, KeyError, TypeError, ValueError):  # lost, or written by another version
        pass
    return ", ".join(parts)


def unfinished(plan: Plan, path: str, now: datetime) -> str:
    """`discards: unfinished work on runs/main/iter1/policy, saved 2 hours ago`; "" if the build would go on with it.

    It is discarded where settings or code differ, or where nobody can tell of what it was made. That its inputs will
    come out different is not known yet.
    """
    tail = artifact.stem(Path(path)).relative_to(plan.root)
    folder = Path(plan.root, "work", tail)
    # A name that begins with a dot is that of a file half-written.
    kept = [each for each in folder.glob("[!.]*") if each.name not in (work.LOCK, work.FINGERPRINT)]
    if not kept:
        return ""
    stage, wildcards = plan.maker(path)
    try:
        made_of = artifact.read_json(folder / work.FINGERPRINT)
    except InputError:
        made_of = {}
    settings = json.loads(plan.settings_json(stage, wildcards))
    if (made_of.get("settings"), made_of.get("code")) == (settings, plan.code(stage, wildcards)):
        return ""
    try:
        saved = datetime.fromtimestamp(max(each.stat().st_mtime for each in kept), UTC)
    except FileNotFoundError:  # a step that still runs has just moved on
        return ""
    return f"discards: unfinished work on {tail.as_posix()}, saved {_ago(now - saved)}"


def _ago(age: timedelta) -> str:
    """`3 days ago`; at least a minute counts."""
    minutes = max(0, int(age.total_seconds() // 60))
    for size, unit in ((24 * 60, "day"), (60, "hour"), (1, "minute")):
        if minutes >= size:
            count = minutes // size
            return f"{count} {unit}{'s' * (count != 1)} ago"
    return "just now"


def lines(plan: Plan, artifacts: Iterable[str]) -> list[str]:
    """One line for all that making these artifacts would lose: trained weights, and what interrupted steps saved."""
    now, made = datetime.now(UTC), sorted(artifacts)
    found = [in_words(plan, path, now) for path in weights(plan, made)]
    return found + [line for path in made if plan.card(path).compute and (line := unfinished(plan, path, now))]


def show(plan: Plan, artifacts: Iterable[str]) -> list[str]:
    """Print these lines at the terminal, and return them."""
    found = lines(plan, artifacts)
    for line in found:
        print(line, file=sys.stderr, flush=True)
    return found


def agree(plan: Plan, artifacts: Iterable[str]) -> None:
    """Show what a build would lose, and have `--config replace=true` or the person agree.

    Raises ConfigError if neither does; nothing has been touched then.
    """
    found = show(plan, artifacts)
    if plan.config.replace or not found:
        return
    question = "Go on and lose what is listed above? [y/N] "
    if not (sys.stdin.isatty() and sys.stderr.isatty() and _asked(question) in ("y", "yes")):
        raise ConfigError(f"the work that is listed above would be lost; nothing was started.\n{HINT}")


def _asked(question: str) -> str:
    """The answer in small letters; none where Ctrl-C or Ctrl-D is typed."""
    try:
        print(question, end="", file=sys.stderr, flush=True)
        answer = sys.stdin.readline()
    except KeyboardInterrupt:
        answer = ""
    if not answer:
        print(file=sys.stderr)  # the next line begins below the question
    return answer.strip().lower()
