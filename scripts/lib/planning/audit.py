"""What on disk differs from what the plan would make now, in words. No torch, no Snakemake.

Compared are an artifact's manifest and the plan: settings, code, and the inputs with their digests. Nothing large is
read: an input's digest is the one that its own manifest gives.
"""

import json
import re
from pathlib import Path
from typing import Any

from scripts.lib.planning.plan import Plan
from scripts.lib.stage import artifact
from scripts.lib.stage.digest import FORMAT, code_digest, file_sha256
from scripts.lib.stage.errors import ConfigError, InputError

SHORT = 60  # characters of a value that are still read at a glance
ITEMS = 4  # of a long list
ABSENT = object()
NOT_MADE = "not made yet"
MANIFEST_MISSING = "manifest is missing"


def made(path: str) -> bool:
    """Whether anything of an artifact stands on disk."""
    place = Path(path)
    return any(file.exists() for file in (place, artifact.manifest_path(place), artifact.digests_path(place)))


def pruned(plan: Plan, path: str) -> bool:
    """Whether an artifact is a policy whose weights were removed while its manifest and digests stayed."""
    place = Path(path)
    kept = artifact.manifest_path(place).is_file() and artifact.digests_path(place).is_file()
    return plan.card(path).is_policy and kept and not place.is_dir()


def differences(plan: Plan, path: str) -> list[str]:
    """How the artifact at `path` differs from what the plan would make now, in words; empty where it agrees.

    Only the artifact itself: that something beneath it will be made again is not said here.
    """
    if not made(path):
        return [NOT_MADE]
    place, differing = Path(path), _missing(plan, path)
    if MANIFEST_MISSING in differing:
        return differing
    try:
        manifest = artifact.read_json(artifact.manifest_path(place))
    except InputError as error:
        return [*differing, f"manifest cannot be read: {str(error).splitlines()[0]}"]
    digests = artifact.digests_path(place)
    if digests.is_file() and manifest.get("output") != file_sha256(digests):
        differing.append("digests file is not the one that the manifest names")
    if manifest.get("format") != FORMAT:
        differing.append(f"manifest format {shown(manifest.get('format'))} -> {FORMAT}")
    rule, wildcards = plan.maker(path)
    if manifest.get("stage") != rule:
        return [*differing, f"made by {manifest.get('stage')} -> {rule}"]
    now: dict[str, Any] = {}
    try:
        now = json.loads(plan.settings_json(rule, wildcards))
    except ConfigError as error:
        differing.append(f"settings cannot be told: {error}")
    else:
        differing += settings_in_words(rule.split("_")[-1], manifest.get("settings"), now)
    differing += code_in_words(str(manifest.get("code", "")), code_digest(rule, now))
    return differing + _inputs_in_words(plan, path, manifest.get("inputs", {}))


def _missing(plan: Plan, path: str) -> list[str]:
    place = Path(path)
    differing = [] if artifact.manifest_path(place).is_file() else [MANIFEST_MISSING]
    if place.suffix:
        return differing if place.is_file() else [*differing, "file is missing"]
    if not artifact.digests_path(place).is_file():
        differing.append("digests file is missing")
    if not place.is_dir() and not pruned(plan, path):
        differing.append("weights are missing")
    return differing


# Settings


def settings_in_words(prefix: str, old: Any, new: Any) -> list[str]:
    """Differences of two values, each with its dotted key: `dpo beta 0.1 -> 0.2`."""
    return [f"{prefix} {text}" for text in _changes("", old, new)]


def _changes(key: str, old: Any, new: Any) -> list[str]:
    if old is ABSENT:
        return [f"{key} {shown(new)} is new"]
    if new is ABSENT:
        return [f"{key} {shown(old)} is gone"]
    if isinstance(old, dict) and isinstance(new, dict):
        differing = []
        for name in sorted(old.keys() | new.keys()):
            differing += _changes(f"{key}.{name}".lstrip("."), old.get(name, ABSENT), new.get(name, ABSENT))
        return differing
    if _json(old) == _json(new):
        return []
    if isinstance(old, list) and isinstance(new, list) and max(len(_json(old)), len(_json(new))) > SHORT:
        return [f"{key}: {_items_in_words(old, new)}"]
    return [f"{key} {shown(old)} -> {shown(new)}"]


def _items_in_words(old: list[Any], new: list[Any]) -> str:
    """What two long lists do not share."""
    parts = [f"{shown(item)} is gone" for item in old if item not in new]
    parts += [f"{shown(item)} is new" for item in new if item not in old]
    more = f" and {len(parts) - ITEMS} more" if len(parts) > ITEMS else ""
    return ", ".join(parts[:ITEMS]) + more or "the order is another"


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def shown(value: Any) -> str:
    """A value as a person reads it: digests and long values shortened, strings without quotes."""
    text = value if isinstance(value, str) else _json(value)
    text = re.sub(r"\b([0-9a-f]{10})[0-9a-f]{54}\b", r"\1…", text)
    return text if len(text) <= SHORT else text[: SHORT - 1] + "…"


# Code


def code_in_words(old: str, new: str) -> list[str]:
    """Differences of two code digests: `code: chat changed`, `torch 2.12.0 -> 2.13.0`."""
    before, now = _entries(old), _entries(new)
    changed, differing = [], []
    for name in sorted(before.keys() | now.keys()):
        was, is_ = before.get(name, ""), now.get(name, "")
        if was == is_:
            continue
        if "==" in (was or is_):
            differing.append(f"{name} {was.lstrip('=') or 'not named'} -> {is_.lstrip('=') or 'not named'}")
        elif was and is_:
            changed.append(name)
        else:
            differing.append(f"code: new import {name}" if is_ else f"code: {name} is no longer imported")
    if changed:
        differing.insert(0, f"code: {', '.join(changed)} changed")
    return differing or ([] if old == new else [f"code {shown(old)} -> {shown(new)}"])


def _entries(digest: str) -> dict[str, str]:
    """Name → separator and value of each entry, such as chat → `:9a0b11` and torch → `==2.13.0`."""
    parts = [re.fullmatch(r"([^:=]+)(.*)", entry) for entry in digest.split()]
    return {part[1]: part[2] for part in parts if part}


# Inputs


def _inputs_in_words(plan: Plan, path: str, recorded: dict[str, list[dict[str, str]]]) -> list[str]:
    # The digests of sources from outside the results stand in the settings.
    before = {part["path"]: part["sha256"] for name, parts in recorded.items() if name != "source" for part in parts}
    now = {name.removeprefix(plan.root + "/"): name for name in plan.reads(path)}
    differing = [f"input {name} is new" for name in now if name not in before]
    differing += [f"input {name} is gone" for name in before if name not in now]
    for name, place in now.items():
        digest = _digest(Path(place))
        if name in before and digest is not None and digest != before[name]:
            differing.append(f"input {name} is another now")
    return differing


def _digest(path: Path) -> str | None:
    """The digest of an input: its manifest's word, or a manifest's own bytes; None where it is not there."""
    if path.suffix == ".json":
        return file_sha256(path) if path.is_file() else None
    try:
        return str(artifact.read_json(artifact.manifest_path(path)).get("output"))
    except InputError:
        return None
