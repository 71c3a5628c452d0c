"""Changes to a copy of a finished build. Each function returns the change; the change takes the copy's folder."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

Change = Callable[[Path], None]
LONG_AGO = 1_000_000_000  # September 2001


def replace(name: str, old: str, new: str, count: int = -1) -> Change:
    """Replace text that the file must hold; -1 replaces it everywhere."""

    def change(checkout: Path) -> None:
        text = (checkout / name).read_text()
        assert old in text, f"{name} does not hold {old!r}"
        (checkout / name).write_text(text.replace(old, new, count))

    return change


def append(name: str, text: str) -> Change:
    """Append to a file, or make it."""

    def change(checkout: Path) -> None:
        with (checkout / name).open("a") as file:
            file.write(text)

    return change


def append_to_each(*patterns: str, text: str) -> Change:
    """Append to files, of which there must be some."""

    def add(path: Path) -> None:
        with path.open("a") as file:
            file.write(text)

    return _each(patterns, add)


def touch(*patterns: str) -> Change:
    """Give files, of which there must be some, the time of now."""
    return _each(patterns, os.utime)


def delete(*patterns: str) -> Change:
    """Delete files or folders, of which there must be some."""
    return _each(patterns, lambda path: shutil.rmtree(path) if path.is_dir() else path.unlink())


def _each(patterns: tuple[str, ...], action: Callable[[Path], Any]) -> Change:
    def change(checkout: Path) -> None:
        for pattern in patterns:
            found = list(checkout.glob(pattern))
            assert found, f"nothing matches {pattern}"
            for path in found:
                action(path)

    return change


def age(name: str) -> Change:
    """Give a file a time of long ago."""
    return lambda checkout: os.utime(checkout / name, (LONG_AGO, LONG_AGO))


def move(source: str, target: str) -> Change:
    """Move a file or folder."""

    def change(checkout: Path) -> None:
        (checkout / target).parent.mkdir(parents=True, exist_ok=True)
        (checkout / source).rename(checkout / target)

    return change


def forget_times(checkout: Path) -> None:
    """Give every file the time of now, in the order of their names: what a copy without times has."""
    for path in sorted(checkout.rglob("*")):
        if ".snakemake" not in path.parts and path.is_file():
            os.utime(path)


def config(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Change:
    """Rewrite config/config.yaml as what `change` makes of it."""

    def rewrite(checkout: Path) -> None:
        file = checkout / "config" / "config.yaml"
        file.write_text(yaml.safe_dump(change(yaml.safe_load(file.read_text())), sort_keys=False))

    return rewrite


def reversed_keys(value: Any) -> Any:
    """The same mapping with the keys of every level in the other order."""
    if isinstance(value, list):
        return [reversed_keys(item) for item in value]
    return {key: reversed_keys(value[key]) for key in reversed(value)} if isinstance(value, dict) else value


def without(key: str, *keys: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A mapping less what stands under a key, or under a key of that key."""

    def less(given: dict[str, Any]) -> dict[str, Any]:
        if keys:
            return {**given, key: without(*keys)(given[key])}
        return {name: value for name, value in given.items() if name != key}

    return less


def both(*changes: Change) -> Change:
    """One change after the other."""

    def change(checkout: Path) -> None:
        for one in changes:
            one(checkout)

    return change
