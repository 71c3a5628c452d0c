"""Configuration: files laid over each other, then one typed whole, with all errors at once.

The models of scripts/lib/kinds know every key. `resolve` turns what the user wrote into a Config; nothing is queued
before it has passed. The module imports neither torch nor Snakemake, so that a plan costs milliseconds.
"""

import sys
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from scripts.lib.kinds.config import RENAMED, Config
from scripts.lib.planning import cluster, complaints, fits
from scripts.lib.planning.checks import Checks
from scripts.lib.planning.given import TINY, Given, presets, read
from scripts.lib.planning.plan import Plan
from scripts.lib.stage.errors import Complaints


def resolve(given: Given, quiet: bool = False) -> Config:
    """The whole configuration: `given` over the defaults, numbers typed, references checked.

    Raises ConfigError that lists every error with its key, its value, what is allowed, and a hint. References are
    checked once keys and types are right. `quiet` is for the Snakemake of a job: no notice of renamed keys goes to
    stderr, and models that have been made since the build began are not looked at.
    """
    wrong = Complaints()
    whole = extended(_modern(given, quiet), wrong, quiet)
    if "preset" in whole and "runs" not in whole:
        text = "begins a configuration of its own, which has no `runs`"
        hint = "to build on a preset, write `extends: tiny` (or another) beside it; `results` alone changes the folder."
        wrong.add("preset", whole["preset"], text, hint)
    wrong.raise_if_any("config")
    config: Config | None = None
    try:
        config = Config.model_validate(whole, context={"stages": cluster.submitted()})
    except ValidationError as error:
        complaints.translate(error, wrong)
    if config is not None:
        Checks(config, wrong, made=not quiet).everything()
    wrong.raise_if_any("config")
    assert config is not None  # noqa: S101
    return config


def check_memory(config: Config) -> None:
    """Refuse a build whose steps are forecast not to fit into the memory there is, or only warn of them on stderr.

    `forecast.refuse` decides which. Raises ConfigError that lists every such step, with the changes that would make it
    fit; they are searched for only here, because the search takes seconds.
    """
    wrong = Complaints()
    fits.check(Plan(config), wrong, mend=config.forecast.refuse)
    if config.forecast.refuse:
        wrong.raise_if_any("config")
    for complaint in wrong:
        print(f"not refused, because forecast.refuse is false: {complaint}", file=sys.stderr)


def extended(given: Given, wrong: Complaints, quiet: bool = False) -> Given:
    """A configuration laid over the preset that it `extends`, and that over what it extends in turn.

    Here and not while files are merged, because Snakemake merges them before the Snakefile can say anything.
    """
    above, seen = dict(given), list[str]()
    while (name := above.pop("extends", None)) is not None:
        known = presets()
        if not isinstance(name, str) or name not in known:
            wrong.unknown("extends", name, "no such preset", known)
        elif name in seen:
            wrong.add("extends", name, f"goes in a circle: {' -> '.join([*seen, name])}", "end it at a whole preset.")
        if wrong:
            return above
        seen.append(name)
        above = merge(_read(known[name], wrong, quiet), above)
    return above


def load(*paths: Path, said: Given | None = None) -> Config:
    """Read and resolve configuration files as the command line would: a preset, then overlays over it.

    `said` is what `--config` says, which comes last. Where none names a preset, all lie over config/config.yaml.
    """
    merged: Given = {}
    wrong = Complaints()
    for path in paths:
        merged = merge(merged, _read(path, wrong))
    merged = merge(merged, _modern(said or {}))
    if "preset" not in merged and "extends" not in merged:
        merged = merge(_read(TINY, wrong), merged)
    wrong.raise_if_any("config")
    return resolve(merged)


def own(paths: Iterable[Path], said: Given) -> Given:
    """What a person's own files and --config say together, without the presets that the project ships."""
    merged: Given = {}
    shipped = {path.resolve() for path in presets().values()}
    for path in paths:
        if path.resolve() not in shipped:
            merged = merge(merged, _read(path, Complaints(), quiet=True))
    return merge(merged, _modern(dict(said), quiet=True))


def merge(below: Given, above: Given) -> Given:
    """`above` laid over `below`: mappings are merged key by key, everything else is replaced."""
    result = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merge(result[key], value) if both else value
    return result


def _read(path: Path, wrong: Complaints, quiet: bool = False) -> Given:
    return _modern(read(path, wrong), quiet)


def _modern(given: Given, quiet: bool = False) -> Given:
    """A copy in which every key is a text and renamed keys have their new names.

    Where both names stand in one block, both are left there, and validation refuses the old one. It is done file by
    file, so that an overlay may say the old name over a preset that says the new one.
    """
    copy: Given = _with_texts_as_keys(given)
    for (*above, old), new in RENAMED.items():
        for key, block in _blocks(copy, above):
            if old in block and new not in block:
                block[new] = block.pop(old)
                if not quiet:
                    _notice(f"{key}.{old} is now called {new}. Hint: rename it; the old name is still read.")
    return copy


def _with_texts_as_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _with_texts_as_keys(item) for key, item in value.items()}
    return [_with_texts_as_keys(item) for item in value] if isinstance(value, list) else value


def _blocks(value: Any, place: list[str], key: str = "") -> list[tuple[str, Given]]:
    """(key, mapping) of all mappings at a place, in which * is any name."""
    if not isinstance(value, dict):
        return []
    if not place:
        return [(key, value)]
    names = [name for name in value if place[0] in ("*", name)]
    return [wrong for name in names for wrong in _blocks(value[name], place[1:], f"{key}.{name}" if key else name)]


@cache
def _notice(line: str) -> None:
    """Say a line on stderr, once in a process."""
    print(line, file=sys.stderr)
