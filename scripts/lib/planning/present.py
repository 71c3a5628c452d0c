"""What a build takes from outside and must be there before it begins: local files, and packages that ship a model."""

from collections.abc import Iterable

from scripts.lib.data import packages
from scripts.lib.kinds.bases import BaseGguf
from scripts.lib.planning.cards import CARDS
from scripts.lib.planning.plan import Plan
from scripts.lib.stage.errors import Complaints, ConfigError, InputError


def check(plan: Plan, artifacts: Iterable[str]) -> None:
    """Raise ConfigError that lists every source of these artifacts without any file, and then the missing packages too.

    A package alone does not keep from planning: only the step that reads it needs it.
    """
    listed = list(artifacts)
    if wrong := missing_sources(plan, listed):
        wrong += missing_packages(plan, listed)
        wrong.raise_if_any("not there")


def missing_sources(plan: Plan, artifacts: Iterable[str]) -> Complaints:
    """A complaint for every local source of these artifacts that has no files."""
    wrong = Complaints()
    for stage, wildcards in map(plan.maker, artifacts):
        if sources := CARDS[stage].sources:
            try:
                sources(plan, wildcards)
            except ConfigError as error:
                wrong += [line for line in [str(error)] if line not in wrong]
    return wrong


def missing_packages(plan: Plan, artifacts: Iterable[str]) -> Complaints:
    """A complaint for every base that is among these artifacts and whose package or file is not installed here."""
    wrong = Complaints()
    for stage, wildcards in map(plan.maker, artifacts):
        block = plan.config.bases[wildcards["base"]] if stage == "convert_base" else None
        if isinstance(block, BaseGguf):
            try:
                packages.file(block.package, block.file)
            except InputError as error:
                text, _, hint = str(error).partition("\nHint: ")
                wrong.append(f"bases.{wildcards['base']}.{text}. Hint: {hint}")
    return wrong
