"""Configuration files as they were given, each read by itself.

Snakemake merges them before anything else: of a key that stands twice it takes the last, of two presets a mixture, and
of a mistake it names neither file nor line. So they are read again here.
"""

import difflib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from scripts.lib.kinds.config import Config
from scripts.lib.stage.digest import ROOT
from scripts.lib.stage.errors import Complaints

Given = dict[str, Any]

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C where PyYAML has it: a tenth of a second of every plan
TINY, PRESETS = ROOT / "config" / "config.yaml", ROOT / "config" / "presets"
UTF_16 = (b"\xff\xfe", b"\xfe\xff")
PLAIN_TEXT = "save it as UTF-8 text."


def presets() -> dict[str, Path]:
    """The files of all presets that the project ships, by name."""
    return {path.stem: path for path in sorted(PRESETS.glob("*.yaml"))} | {"tiny": TINY}


def read(path: Path, wrong: Complaints, may_be_empty: bool = False) -> Given:
    """The mapping in a file; empty, with complaints that name file and line, where it cannot be taken as it is."""
    try:
        data = path.read_bytes()
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, utf_16 = data.count(b"\n", 0, error.start) + 1, data[:2] in UTF_16
        wrong.add(f"{path}, line {line}", None, "is UTF-16" if utf_16 else "is no UTF-8 text", PLAIN_TEXT)
        return {}
    except OSError as error:
        _unreadable(path, error, wrong)
        return {}
    if path.suffix == ".json":
        text = text.expandtabs()  # JSON may be indented by tabs, YAML may not
    try:
        value, twice = _parsed(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        hint = "indent by spaces, close every bracket and quote, and put a space after each colon."
        wrong.add(f"{path}, line {mark.line + 1 if mark else 1}", None, f"no YAML: {error.problem}", hint)
        return {}
    except yaml.YAMLError:  # of the reader, about a character that YAML does not have
        character = next((i for i, letter in enumerate(text) if not (letter.isprintable() or letter in "\n\r\t")), 0)
        line = text.count("\n", 0, character) + 1
        wrong.add(f"{path}, line {line}", None, f"holds the character {text[character]!r}", PLAIN_TEXT)
        return {}
    except ValueError as error:  # such as a date of month 13
        wrong.add(str(path), None, f"holds a value that YAML cannot read: {error}", "put it between quotes.")
        return {}
    except RecursionError:
        wrong.add(str(path), None, "is nested too deeply, or a part of it holds itself", "write each block out.")
        return {}
    for line, key, first in twice:
        text = f"{key} stands twice in this block, first in line {first}; only the last would count"
        wrong.add(f"{path}, line {line}", None, text, "leave one of them out.")
    if value is None and may_be_empty:
        return {}
    if not isinstance(value, dict):
        text = "is empty" if value is None else f"must hold keys and values, and is a {type(value).__name__}"
        wrong.add(str(path), None, text, "write such as `seed: 3`.")
        return {}
    if "__use_yte__" in value:
        wrong.add(f"{path}: __use_yte__", None, "a configuration is no program", "write the values themselves.")
    return value


def _parsed(text: str) -> tuple[Any, list[tuple[int, str, int]]]:
    """The value of a YAML text, and (line, key, line of the first) of every key that stands twice in one mapping."""
    loader = LOADER(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None, []
        twice = list(_twice(node, ()))
        return loader.construct_document(node), twice
    finally:
        loader.dispose()


def _twice(node: yaml.Node, above: tuple[int, ...]) -> Iterator[tuple[int, str, int]]:
    if id(node) in above:
        raise RecursionError
    if isinstance(node, yaml.MappingNode):
        first: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode) and key.value in first:
                yield line, key.value, first[key.value]
            elif isinstance(key, yaml.ScalarNode):
                first[key.value] = line
            yield from _twice(value, (*above, id(node)))
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _twice(value, (*above, id(node)))


def _unreadable(path: Path, error: OSError, wrong: Complaints) -> None:
    if path.is_dir():
        inside = sorted(file.name for file in path.glob("*.y*ml"))
        hint = f"name a file in it, such as {path / inside[0]}." if inside else "name a YAML file."
        wrong.add(str(path), None, "is a folder", hint)
    elif not path.exists():
        beside = [str(file) for file in path.parent.glob("*.y*ml")]
        shipped = [os.path.relpath(file) for file in presets().values()]
        known = presets().get(path.stem)
        near = [os.path.relpath(known)] if known else difflib.get_close_matches(str(path), [*beside, *shipped], n=1)
        missing = "its folder is not there" if not path.parent.is_dir() else "no such file"
        wrong.add(str(path), None, missing, f"did you mean {near[0]}?" if near else "name a YAML file that is there.")
    else:
        wrong.add(str(path), None, f"cannot be read: {error.strerror}", "make it readable for yourself.")


def check(paths: Iterable[Path], said: Given, wrong: Complaints) -> None:
    """Complain of all that is wrong with configuration files before they are merged; `said` is what --config says."""
    contents = [(shown(path), read(path, wrong)) for path in paths] + [("--config", said)]
    roots = [(name, content) for name, content in contents if {"preset", "extends"} & set(content)]
    for name, content in roots[1:]:
        (first, other), key = roots[0], "preset" if "preset" in content else "extends"
        above = next(f"{key} {other[key]!r}" for key in ("preset", "extends") if key in other)
        text = f"{first} begins from {above} already, and both together would be a mixture"
        hint = "give one of them; to build on a preset, write `extends: NAME` in your file and leave out the preset's."
        wrong.add(f"{name}: {key}", content[key], text, hint)


def shown(path: Path) -> str:
    """A path as a person would type it here."""
    inside = Path(os.path.relpath(path))
    return str(path if ".." in inside.parts else inside)


def introduction(config: Config, paths: Iterable[Path], said: Iterable[str]) -> str:
    """One line on what a start is about: the preset, what lies over it, the run and the results.

    `paths` are the configuration files in order, `said` the keys of --config.
    """
    overlays = [shown(path) for path in paths if "preset" not in read(path, Complaints())]
    overlays += [f"--config {key}" for key in said if key != "extends"]
    above = f"overlays {', '.join(overlays)}" if overlays else "no overlay"
    return f"preset {config.preset}, {above}; run {config.run}; results in {config.results}"
