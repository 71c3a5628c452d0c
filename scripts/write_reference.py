"""`make reference`: writes what the models of scripts/lib/kinds say of every key, for people and for editors.

config/README.md is the key reference; config/schema.json lets an editor complete and check a file while it is written.
"""

import argparse
import json
from typing import Any, NamedTuple

from scripts.lib.kinds.schema import Rule, entries, kinds, resolved, schema, values
from scripts.lib.stage.digest import ROOT

README, SCHEMA = ROOT / "config" / "README.md", ROOT / "config" / "schema.json"
INTRODUCTION = """\
# Every key of the configuration

Written by `make reference` from the models in `scripts/lib/kinds`; change it there.

A **preset** is a whole configuration. `config/config.yaml` is the preset `tiny`; others lie in `config/presets`. An
**overlay** is a file with only the keys that you want to change. Give both to `--configfile`, the preset first, then
the overlays in order; without a preset they lie over `tiny`. Mappings are merged key by key; lists and values are
replaced. `--config key=value` comes last.

`extends: NAME` in a file lays it over a preset of `config/presets`, which may extend another. With a `preset` of its
own the file is a new preset with results of its own; without one it is an overlay.

Blocks under names (`bases`, `datasets`, …, `evaluation`) hold any number of entries, and others refer to them by name:
`runs: {main: {sft: first}}` starts from `sft: {first: …}`. Names consist of a-z, 0-9 and _: they become folders.

A number may be written as 64, 64.0 or 1e-6; `null` stands for no value. Mistakes are reported before anything is
queued, all at once, each with its key, its value, what is allowed, and a hint.

Changing a key of `runtime`, `resources` or `forecast` reruns nothing: they say how the work is done and what it asks of
a machine. Every other key decides results, unless its row says otherwise.

An editor with a YAML language server completes and checks the keys of a file that begins with this line; the path is
relative to the file:

```yaml
# yaml-language-server: $schema=../schema.json
```
"""
LIMITS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
BAR = r"\|"  # a plain one would end the cell of a table
NAMES = {"resources": "STAGE", "overrides": "N"}
TYPES = {"string": "text", "integer": "integer", "number": "number", "boolean": "`true` or `false`"}


def main(argv: list[str] | None = None) -> int:
    """Write both files."""
    argparse.ArgumentParser(description=__doc__).parse_args(argv)
    for path, text in ((README, reference()), (SCHEMA, editors_schema())):
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(ROOT))
    return 0


def editors_schema() -> str:
    """The JSON Schema of one file.

    A file may be an overlay, so nothing is required of it, and a block without `kind` may be of any kind.
    """
    first = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Ouroboros configuration"}
    return json.dumps({**_for_overlays(schema()), **first}, indent=2, ensure_ascii=False) + "\n"


def _for_overlays(rule: Any) -> Any:
    if isinstance(rule, list):
        return [_for_overlays(part) for part in rule]
    if not isinstance(rule, dict):
        return rule
    kept = {key: part for key, part in rule.items() if key not in ("required", "discriminator")}
    return {"anyOf" if key == "oneOf" else key: _for_overlays(part) for key, part in kept.items()}


def reference() -> str:
    """The key reference: a section for each block, with a table of its keys."""
    sections = _sections()
    links = {section.rule["title"]: section.path for section in reversed(sections) if "title" in section.rule}
    top = {key: rule for key, rule in schema()["properties"].items() if not _block(rule)}
    lines = [INTRODUCTION, "## Top level", "", *_table({**schema(), "properties": top}, links)]
    for section in sections:
        lines += ["", f"{'#' * section.level} {section.path}", "", section.text]
        for kind, rule in kinds(section.rule).items():
            lines += ["", f"{'#' * section.level}# {section.path}, kind: {kind}", "", _line(rule["description"]), ""]
            lines += _table(rule, links)
        if "properties" in section.rule:
            lines += ["", *_table(section.rule, links)]
    return "\n".join(lines) + "\n"


class Section(NamedTuple):
    """A block of the reference: where it stands in a configuration, its rule, and what it is."""

    level: int
    path: str
    rule: Rule
    text: str


def _sections() -> list[Section]:
    """Every block once, in the order of the configuration, each followed by the blocks in it."""
    found: dict[str, Section] = {}

    def visit(level: int, path: str, rule: Rule) -> None:
        block = _block(rule)
        if not block or block.get("title", path) in found:
            return
        path += _inside(path, resolved(rule))
        said = schema()["$defs"][block["title"]] if "title" in block else resolved(rule)
        found[block.get("title", path)] = Section(level, path, block, _line(said["description"]))
        for part in (kinds(block) or {"": block}).values():
            for key, inner in part["properties"].items():
                visit(3, f"{path}.{key}", inner)

    for key, rule in schema()["properties"].items():
        visit(2, key, rule)
    return list(found.values())


def _block(rule: Rule) -> Rule:
    """The rule of the block that a key holds: itself, under names, or in a list. Empty where it holds a value."""
    rule = resolved(rule)
    if "properties" in rule or "discriminator" in rule:
        return rule
    inner = rule["items"] if rule.get("type") == "array" else entries(rule) if rule.get("type") == "object" else None
    return _block(inner) if inner else {}


def _inside(path: str, rule: Rule) -> str:
    """How a block's path goes on to its keys."""
    if rule.get("type") == "array":
        return "[…]"
    return "" if "properties" in rule else f".{NAMES.get(path.rsplit('.', 1)[-1], 'NAME')}"


def _table(block: Rule, links: dict[str, str]) -> list[str]:
    """The keys of a block: `kind` first, then those that must be given."""
    required = block.get("required", [])
    rows = sorted(block["properties"].items(), key=lambda item: (item[0] != "kind", item[0] not in required))
    lines = ["| key | type and range | default | meaning |", "|---|---|---|---|"]
    for key, rule in rows:
        cells = (f"`{key}`", _type(rule, links), _default(rule, key in required), _line(rule["description"]))
        lines.append(f"| {' | '.join(cell.replace('|', BAR) for cell in cells)} |")
    return lines


def _type(rule: Rule, links: dict[str, str]) -> str:
    """What a key takes, in words."""
    whole, block = resolved(rule), _block(rule)
    null = ", or `null`" if whole.get("nullable") else ""
    if block:
        path = links[block["title"]]
        anchor = "".join(letter for letter in path.lower() if letter.isalnum() or letter in "_-")
        return f"[{path}](#{anchor}){null}"
    if listed := values(whole):
        return ", ".join(f"`{value}`" for value in listed)
    if "oneOf" in whole:
        return "; or ".join(_type(part, links) for part in whole["oneOf"])
    if whole["type"] == "array":
        least, most = whole.get("minItems", 0), whole.get("maxItems")
        count = f" of {least}" if least == most else " of one or more" if least else ""
        return f"list{count}: {_type(whole['items'], links)}{null}"
    limits = [f"{words} {whole[limit]:g}" for limit, words in LIMITS.items() if limit in whole]
    limits += [f"matching `{whole['pattern']}`"] if "pattern" in whole else []
    return ", ".join([TYPES[whole["type"]], *limits]) + null


def _default(rule: Rule, required: bool) -> str:
    default = rule.get("default", {})
    if isinstance(default, float):
        default = f"{default:g}"
    return "required" if required else f"`{default if isinstance(default, str) else json.dumps(default)}`"


def _line(text: str) -> str:
    return " ".join(text.split())


if __name__ == "__main__":
    raise SystemExit(main())
