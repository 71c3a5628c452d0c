"""Families: interchangeable parts, one file a member, chosen by a setting and found by the name of its file.

A new member is a new file; nothing else lists it. Only the members that a stage's settings choose count in the digest
of its code, so a new member, or a change to another one, makes nothing again.
"""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

LIB = Path(__file__).resolve().parents[1]
# Family → its folder beneath scripts/lib.
FOLDERS = {"adapters": "data/adapters", "engines": "models/engines", "labels": "labels", "benchmarks": "benchmarks"}
# A setting of one of these names chooses a member of the family.
CHOSEN_BY = {"adapter": "adapters", "engine": "engines", "verifier": "labels", "labeller": "labels"}
CHOSEN_BY |= {"benchmark": "benchmarks"}


def names(family: str) -> list[str]:
    """The members of a family, in alphabetical order."""
    return sorted(path.stem for path in (LIB / FOLDERS[family]).glob("*.py") if not path.stem.startswith("_"))


def chosen(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """The members that a stage's settings choose, as FAMILY/NAME."""
    return tuple(f"{family}/{settings[key]}" for key, family in sorted(CHOSEN_BY.items()) if settings.get(key))


def module(member: str) -> str:
    """The module of FAMILY/NAME."""
    family, _, name = member.partition("/")
    return f"scripts.lib.{FOLDERS[family].replace('/', '.')}.{name}"


def load(family: str, name: str) -> Any:
    """The member's module, imported. Raises KeyError for a name that the family does not have."""
    if name not in names(family):
        raise KeyError(f"{family} has no member {name!r}; it has {', '.join(names(family))}")
    return import_module(module(f"{family}/{name}"))
