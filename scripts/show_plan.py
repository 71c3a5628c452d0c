"""`make plan`: what `snakemake TARGET` would do and why, on one page: jobs, root causes, sharing, memory and time.

Runs Snakemake's own dry run and explains it from the manifests. Takes the target first, then any of Snakemake's
options (--configfile, --config, …).
"""

import contextlib
import io
import subprocess
import sys
from typing import Any

from scripts.lib.planning import config, explain, replaced
from scripts.lib.planning.forecast import Forecast
from scripts.lib.planning.given import introduction
from scripts.lib.planning.plan import Plan
from scripts.lib.planning.unused import unused
from scripts.lib.stage.errors import ConfigError


def main(argv: list[str] | None = None) -> int:
    """Print the page; if Snakemake fails, pass on its output and exit code."""
    given = sys.argv[1:] if argv is None else argv
    if set(given) & {"-h", "--help"}:
        print(f"usage: python -m scripts.show_plan [TARGET …] [any option of Snakemake]\n\n{__doc__}")
        return 0
    dry_run = subprocess.run(
        [sys.executable, "-m", "snakemake", "-n", *given], capture_output=True, encoding="utf-8", check=False
    )
    if dry_run.returncode != 0:
        sys.stdout.write(dry_run.stdout)
        sys.stderr.write(dry_run.stderr)
        return dry_run.returncode
    options = _options(given)
    if options.quiet:
        print("--quiet: a quiet dry run does not name its jobs.\nHint: leave the option out.", file=sys.stderr)
        return 2
    jobs, plan = explain.planned(dry_run.stdout), _plan(options)
    files, said = options.configfile, _said(options)
    lines = [introduction(plan.config, files, said), *unused(plan.config, config.own(files, said))]
    print(*lines, sep="\n", file=sys.stderr)
    targets = []
    for target in options.targets or ["all"]:
        with contextlib.suppress(ConfigError):  # a target without artifacts shares none
            targets += plan.asked(target)
    overlooked = explain.overlooked(plan, targets, jobs)
    if not jobs:
        print("Nothing would run.", *overlooked, sep="\n")
        return 0
    print(f"{explain.jobs_in_words(len(jobs))} would run, grouped by policy:\n")
    print("\n".join(explain.table(plan, jobs)))
    print("\nwhy:", *explain.causes_in_words(explain.causes(plan, jobs)), *overlooked, sep="\n  ")
    if lost := replaced.lines(plan, (job.artifact for job in jobs)):
        print("\nasks first, because work is lost:", *lost, sep="\n  ")
    if shared := explain.shared(plan, targets, jobs):
        print("\nshared:", *shared, sep="\n  ")
    if forecast := Forecast(plan).lines(job.artifact for job in jobs):
        print("\nforecast for the most demanding jobs:", *forecast, sep="\n  ")
    print(f"\n{explain.cost_in_words(explain.cost(plan, targets, jobs), len(jobs))}")
    return 0


def _options(given: list[str]) -> Any:
    """The command line as Snakemake parses it, profile included."""
    from snakemake.cli import parse_args

    with contextlib.redirect_stderr(io.StringIO()):  # it announces the profile, as the dry run did already
        return parse_args(given)[1]


def _plan(options: Any) -> Plan:
    """The plan that the Snakefile makes from these options."""
    return Plan(config.load(*options.configfile, said=_said(options)))


def _said(options: Any) -> dict[str, Any]:
    """What --config says."""
    from snakemake.cli import parse_config

    said: dict[str, Any] = parse_config(options.config)
    return said


if __name__ == "__main__":
    sys.exit(main())
