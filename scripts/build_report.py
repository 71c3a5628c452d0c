"""One self-contained page about all runs: what was learnt, at what distance from SFT, from which pairs, in which words.

Every number on the page stands in a manifest or a table, but for the paired differences between the ends of runs, which
are computed from the tables here. Whatever a model or a data set wrote is untrusted text and escaped.
"""

import sys

from scripts.lib.kinds.evaluation import BuildReport
from scripts.lib.report import page, read, templates
from scripts.lib.stage import artifact, contract


def run(job: contract.Job[BuildReport]) -> None:
    """Read the manifests, write the page."""
    templates.verify(job.settings.templates)
    facts = read.read(job.settings, job.inputs)
    job.warnings = [f"{where}: {text}" for where, text in read.over_iterations(facts.runs, facts.benchmarks)]
    parts = page.compose(facts)
    html = page.render(parts)
    artifact.write_text(job.output, html)
    policies = {policy for run in facts.runs for policy in run.policies}
    job.counts = {
        "runs": len(facts.runs),
        "policies": len(policies),
        "benchmarks": len(facts.benchmarks),
        "pair_tables": len(facts.pairs),
        "engine_checks": len(facts.engines),
        "reward_models": len(facts.rewards),
        "warnings": len(facts.warnings),
        "prompts_shown": sum(len(section.samples) for section in parts.benchmarks),
    }
    for benchmark in facts.benchmarks:
        labeller, mode = benchmark.labellers[0], benchmark.modes[0]
        summaries = {run.name: benchmark.summary(run.policies[-1], mode) for run in facts.runs}
        job.metrics[benchmark.name] = {name: s["rewards"][labeller]["mean"] for name, s in summaries.items()}
    job.note = f"{len(facts.runs)} runs, {len(policies)} policies, {len(html) // 1024} KiB"


def main(argv: list[str] | None = None) -> int:
    """Command line; see `--help`."""
    return contract.execute("build_report", run, BuildReport, ("evaluations*", "manifests*"), argv)


if __name__ == "__main__":
    sys.exit(main())
