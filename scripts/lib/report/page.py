"""The page: its parts put together from the facts, and the templates rendered with them.

page.html.jinja includes a template for each part. Every text is escaped there.
"""

from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from scripts.lib.report import charts, figures, lead, loop, policies, provenance, samples, steps, templates
from scripts.lib.report.charts import Glyph
from scripts.lib.report.figures import Figure
from scripts.lib.report.lead import Lead
from scripts.lib.report.policies import Policy
from scripts.lib.report.provenance import Provenance
from scripts.lib.report.read import Benchmark, Facts, Warned
from scripts.lib.report.samples import Sample


class RunName(NamedTuple):
    """A run in the page's head and in the charts' legends."""

    name: str
    method: str
    iterations: int
    glyph: Glyph


class Section(NamedTuple):
    """All that the page shows of one benchmark."""

    name: str
    lead: Lead
    confidence: str
    figures: list[Figure]
    tables: list[policies.Table]
    drawn: str
    samples: list[Sample]


class Page(NamedTuple):
    """All that the templates show. A table is None where there are no such steps."""

    preset: str
    warnings: list[Warned]
    mark: loop.Snake
    sft: Glyph
    runs: list[RunName]
    benchmarks: list[Section]
    pairs: steps.Table | None
    engines: steps.Table | None
    rewards: steps.Table | None
    graph: loop.Graph
    provenance: Provenance


def compose(facts: Facts) -> Page:
    """The page's parts. Draws the charts, and reads the responses that are shown."""
    listed = policies.in_order(facts.runs)
    return Page(
        preset=facts.preset,
        warnings=facts.warnings,
        mark=loop.mark(),
        sft=charts.SFT,
        runs=[RunName(run.name, run.method, len(run.policies) - 1, charts.glyph(run.slot)) for run in facts.runs],
        benchmarks=[_section(facts, listed, benchmark) for benchmark in facts.benchmarks],
        pairs=steps.pairs(facts.pairs),
        engines=steps.engines(facts.engines),
        rewards=steps.rewards(facts.rewards),
        graph=loop.graph(sorted({run.method for run in facts.runs})),
        provenance=provenance.of(facts, listed),
    )


def render(page: Page) -> str:
    """The page as one HTML document that loads nothing. A name that a template misspells is an error."""
    environment = Environment(
        loader=FileSystemLoader(templates.FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("page.html.jinja").render(page=page)


def _section(facts: Facts, listed: list[Policy], benchmark: Benchmark) -> Section:
    return Section(
        name=benchmark.name,
        lead=lead.of(facts, benchmark),
        confidence=benchmark.confidence,
        figures=figures.of(facts.runs, benchmark),
        tables=[policies.table(listed, benchmark, mode) for mode in benchmark.modes],
        drawn=benchmark.drawn,
        samples=samples.of(facts.runs, listed, benchmark),
    )
