"""What pydantic finds wrong with a configuration, in our words: key, value, what is allowed, and a hint.

pydantic validates, this module only translates: it follows an error's place through the JSON Schema of the models,
which holds the name, the description and the allowed values of every key.
"""

import difflib
from collections.abc import Iterator
from typing import Any, NamedTuple

from pydantic import ValidationError

from scripts.lib.kinds.config import RENAMED
from scripts.lib.kinds.schema import Rule, entries, kinds, resolved, schema, types, values
from scripts.lib.stage.errors import Complaints

LIMITS = {
    "greater_than": ("must be greater than", "gt"),
    "greater_than_equal": ("must be at least", "ge"),
    "less_than": ("must be less than", "lt"),
    "less_than_equal": ("must be at most", "le"),
}


# How YAML writes a value of a type.
WRITTEN = {
    "number": "a number such as 0.5 or 2e-4. ",
    "integer": "a number such as 8. ",
    "boolean": "true or false. ",
    "object": "keys and values. ",
    "array": "a list in brackets. ",
}


class Place(NamedTuple):
    """Where an error lies: its key, the key's rule and hint, and its rank among all errors."""

    key: str
    rule: Rule
    hint: str
    rank: list[tuple[int, int]]
    of_name: bool


def translate(error: ValidationError, complaints: Complaints) -> None:
    """Add a complaint for every error: of each block first what is missing, then unknown keys, then its keys in order.

    Entries of named blocks keep the order in which they were given. Where the name of an entry is wrong, nothing is
    said of what stands beneath it.
    """
    details, seen = error.errors(include_url=False), dict[tuple[str, ...], int]()
    misnamed = {detail["loc"][:-1] for detail in details if detail["loc"][-1:] == ("[key]",)}
    placed = [
        (_place(detail["loc"], detail["type"], seen), detail)
        for detail in details
        if detail["loc"][-1:] == ("[key]",) or not any(detail["loc"][: len(above)] == above for above in misnamed)
    ]
    for place, detail in sorted(placed, key=lambda pair: pair[0].rank):
        _complain(place, detail["type"], detail["input"], detail.get("ctx", {}), detail["msg"], complaints)


def _place(loc: tuple[int | str, ...], error: str, seen: dict[tuple[str, ...], int]) -> Place:
    """Follow an error's place; `seen` numbers the entries of named blocks as they turn up."""
    rule, key, hint, rank, path = resolved(schema()), "", "", list[tuple[int, int]](), list[str]()
    for i, part in enumerate(loc, start=1):
        below: Rule = {}
        if part == "[key]":
            return Place(key, rule, hint, rank, True)
        if "oneOf" in rule:
            rule = kinds(rule)[str(part)]
            continue
        path.append(str(part))
        known = rule.get("properties", {})
        if isinstance(part, int):
            below = rule["items"]
            rank.append((2, part))
        elif part in known:
            below = known[part]
            rank.append((0 if error == "missing" and i == len(loc) else 2, list(known).index(part)))
        elif "properties" in rule:
            rank.append((1, 0))
        else:
            below = entries(rule)
            rank.append((1 if error == "unknown_key" else 2, seen.setdefault(tuple(path), len(seen))))
        key = f"{key}[{part}]" if isinstance(part, int) else f"{key}.{part}" if key else str(part)
        if below:
            rule = resolved(below)
            hint = rule.get("description", hint).split("\n\n")[0].replace("\n", " ")
    return Place(key, rule, hint, rank, False)


def _complain(place: Place, error: str, value: Any, context: dict[str, Any], text: str, complaints: Complaints) -> None:
    key, rule, hint, _, of_name = place
    if error == "extra_forbidden" and (renamed := _renamed(key)):
        complaints.add(key, None, f"is now called {renamed}, which is given too", f"keep {renamed} only.")
    elif error == "extra_forbidden":
        _unknown_key(key, rule, complaints)
    elif error == "missing":
        complaints.add(key, None, "missing", hint)
    elif "known" in context:
        complaints.unknown(key, None if of_name else value, text, context["known"])
    elif "hint" in context:
        complaints.add(key, None if of_name else value, text, context["hint"])
    elif error == "string_pattern_mismatch" and of_name:
        complaints.add(key, None, f"the name must match {context['pattern']}", hint)
    elif error == "string_pattern_mismatch":
        complaints.add(key, value, f"must match {context['pattern']}", hint)
    elif "discriminator" in rule and not isinstance(value, dict):
        null = "is null, " if value is None else ""
        complaints.add(key, value, f"{null}must be object", f"{WRITTEN['object']}{hint}")
    elif "discriminator" in rule:
        kind = value.get("kind")
        complaints.unknown(f"{key}.kind", kind, f"must be one of {', '.join(kinds(rule))}", kinds(rule))
    elif error == "literal_error":
        complaints.unknown(key, value, f"must be one of {', '.join(values(rule))}", values(rule))
    elif error in LIMITS:
        words, limit = LIMITS[error]
        complaints.add(key, value, f"{words} {_number(context[limit])}", hint)
    elif error == "finite_number":
        complaints.add(key, value, "must be finite", hint)
    elif error == "too_short" and rule["type"] == "object":
        complaints.add(key, None, "is empty", "give it at least one entry.")
    elif error == "too_short":
        complaints.add(key, value, f"must have at least {context['min_length']} entries", hint)
    elif error == "too_long":
        complaints.add(key, value, f"must have at most {context['max_length']} entries", hint)
    elif error == "string_too_short":
        complaints.add(key, value, "is empty", hint)
    else:
        kind = types(rule).split(" ")[0]
        alone = kind == "array" and isinstance(value, str | int | float)
        written = f"write [{value}]. " if alone else WRITTEN.get(kind, "")
        null = "is null, " if value is None else ""
        complaints.add(key, value, f"{null}must be {types(rule)}", f"{written}{hint}")


def _number(limit: float) -> str:
    """A limit in full."""
    return str(limit) if isinstance(limit, int) else f"{limit:g}"


def _unknown_key(key: str, rule: Rule, complaints: Complaints) -> None:
    """A key that is known in another block is told where, unless one of this block is spelled almost like it."""
    name = key.rsplit(".", 1)[-1]
    places = list(dict.fromkeys(_places(name, schema(), "")))
    if places and not difflib.get_close_matches(name, rule["properties"], n=1, cutoff=0.8):
        listed = ", ".join(places[:4]) + (" and others" if len(places) > 4 else "")
        complaints.add(key, None, "unknown key here", f"{name} is a key of {listed}.")
    else:
        complaints.unknown(key, None, "unknown key", rule["properties"])


def _places(name: str, rule: Rule, key: str) -> Iterator[str]:
    """The blocks that have a key, such as runs.NAME.dpo."""
    rule = resolved(rule)
    for kind, part in kinds(rule).items():
        at_the_top = f"{key} (kind: {kind})" if name in part.get("properties", {}) else None
        yield from [at_the_top] if at_the_top else _places(name, part, key)
    known = rule.get("properties", {})
    if name in known:
        yield key or "the top"
    below = {f"{key}.{part}" if key else part: known[part] for part in known}
    if rule.get("type") == "object" and (named := entries(rule)):
        below[f"{key}.NAME"] = named
    if "items" in rule:
        below[f"{key}[N]"] = rule["items"]
    for place, part in below.items():
        yield from _places(name, part, place)


def _renamed(key: str) -> str | None:
    """The new name of an old key, if it is one."""
    parts = tuple(key.split("."))
    return next(
        (
            new
            for old, new in RENAMED.items()
            if len(old) == len(parts) and all(name in ("*", part) for name, part in zip(old, parts))
        ),
        None,
    )
