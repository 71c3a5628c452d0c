"""Do the rules say what the cards say? A stage that is declared one way and wired another is refused at start."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from scripts.lib.planning import paths
from scripts.lib.planning.card import Card
from scripts.lib.planning.cards import CARDS
from scripts.lib.planning.plan import Plan
from scripts.lib.stage.errors import Complaints, ConfigError


@dataclass(frozen=True)
class Wired:
    """What Snakemake knows of a rule: its outputs by name, and its wildcard constraints."""

    outputs: Mapping[str, str]
    constraints: Mapping[str, str]


def only(names: list[str]) -> str:
    """Wildcard constraint that matches exactly these names, and nothing if there are none."""
    return "|".join(re.escape(name) for name in names) or "(?!)"


def constraints(plan: Plan, stage: str) -> dict[str, str]:
    """Wildcard constraints of a stage that shares its paths with others: the names that its card makes."""
    return {wildcard: only(names) for wildcard, names in plan.names(stage).items()}


def outputs(plan: Plan, card: Card) -> dict[str, str]:
    """The outputs that a stage's rule declares, by name."""
    path = f"{plan.root}/{card.output}"
    digests = {"digests": f"{path}.sha256"} if card.is_folder else {}
    return {"artifact": path, **digests, "manifest": paths.manifest(path)}


def check(plan: Plan, rules: Mapping[str, Wired]) -> None:
    """Raise ConfigError that lists every rule which is not wired as its card says, with the card and the field."""
    complaints = Complaints()
    for name, card in CARDS.items():
        rule = rules.get(name)
        if rule is None:
            complaints.add(f"card {name}", None, "has no rule", f"write `use rule stage as {name} with:` in rules/.")
            continue
        for field, said, wanted in (
            ("output", dict(rule.outputs), outputs(plan, card)),
            ("makes", dict(rule.constraints), constraints(plan, name)),
        ):
            if said != wanted:
                hint = {
                    "output": "name the same path in rule and card.",
                    "makes": f'write `wildcard_constraints: **made_by("{name}")`, or nothing if the card makes all.',
                }[field]
                complaints.add(f"card {name}: {field}", None, f"is {wanted}, its rule says {said}", hint)
    for name in rules.keys() - CARDS.keys():
        hint = "declare one in scripts/lib/planning/cards, where the plan, audit and forecast look for it."
        complaints.add(f"rule {name}", None, "makes an artifact and has no card", hint)
    if complaints:
        raise ConfigError("rules and cards differ:\n" + "\n".join(f"  - {line}" for line in complaints))
