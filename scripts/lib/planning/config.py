"""Configuration: defaults from the schema, types from the schema, all errors at once.

`resolve` turns what the user wrote into a whole configuration. Nothing is queued before it has passed. The module
imports neither torch nor Snakemake, so that a plan costs milliseconds.
"""

import math
import re
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator

from scripts.lib.planning import fits
from scripts.lib.planning.checks import Checks, Config
from scripts.lib.planning.plan import Plan
from scripts.lib.stage.digest import ROOT
from scripts.lib.stage.errors import Complaints, ConfigError

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C where PyYAML has it: a tenth of a second of every plan
PRESETS = ROOT / "config" / "presets"
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


@cache
def schema() -> dict[str, Any]:
    """The configuration's JSON Schema."""
    loaded: dict[str, Any] = yaml.load((ROOT / "config" / "schema.yaml").read_text(), Loader=LOADER)  # noqa: S506
    return loaded


def resolve(given: Config) -> Config:
    """The whole configuration: `given` over the schema's defaults, numbers typed, references checked.

    Raises ConfigError that lists every error with its key, its value, what is allowed, and a hint. References are
    checked once keys and types are right, and whether all fits into memory once they are right too.
    """
    found = Complaints()
    given = extended(given, found)
    config: Config = {} if found else _complete(given, schema(), "", found)
    if not found:
        Checks(config, found).everything()
    if not found:
        config["results"] = config["results"] or f"results/{config['preset']}"
        config["run"] = config["run"] or next(iter(config["runs"]))
        fits.check(Plan(config), found)
    if found:
        count = f"{len(found)} error{'s' * (len(found) > 1)}"
        raise ConfigError(f"config: {count}\n" + "\n".join(f"  - {complaint}" for complaint in found))
    return config


def _complete(value: Any, rule: dict[str, Any], key: str, found: Complaints) -> Any:
    """`value` with defaults filled in and numbers typed as the schema says; what does not fit goes to `found`."""
    rule = _resolved(rule)
    if "oneOf" in rule:
        kinds = {target["properties"]["kind"]["const"]: target for target in map(_resolved, rule["oneOf"])}
        kind = value.get("kind") if isinstance(value, dict) else None
        if kind not in kinds:
            found.unknown(f"{key}.kind", kind, f"must be one of {', '.join(kinds)}", kinds)
            return value
        rule = kinds[kind]
    if isinstance(value, dict) and "x-keys-of" in rule:
        rule = _without_defaults(schema()["$defs"][rule["x-keys-of"]])
    if isinstance(value, dict) and ("properties" in rule or "additionalProperties" in rule):
        return _complete_object(value, rule, key, found)
    if isinstance(value, list) and "items" in rule:
        before = len(found)
        value = [_complete(item, rule["items"], f"{key}[{i}]", found) for i, item in enumerate(value)]
        if len(found) > before:
            return value
    value = _typed(value, rule)
    if isinstance(value, float) and not math.isfinite(value):
        found.add(key, value, "must be finite", _hint(rule))
        return value
    error = next(Draft202012Validator(rule).iter_errors(value), None)
    if error is not None and error.validator == "enum":
        found.unknown(key, value, _allowed(error), error.validator_value)
    elif error is not None:
        found.add(key, value, _allowed(error), _hint(rule))
    return value


def _complete_object(value: Config, rule: dict[str, Any], key: str, found: Complaints) -> Config:
    properties, others = rule.get("properties", {}), rule.get("additionalProperties")
    result: Config = {}
    for name in rule.get("required", []):
        if name not in value:
            found.add(_join(key, name), None, "missing", _hint(_resolved(properties[name])))
    if len(value) < rule.get("minProperties", 0):
        found.add(key, None, "is empty", "give it at least one entry.")
    for raw, item in value.items():
        name = str(raw)
        if name in properties:
            continue
        if not others:
            found.unknown(_join(key, name), None, "unknown key", properties)
        elif "propertyNames" in rule and not re.search(rule["propertyNames"]["pattern"], name):
            pattern = rule["propertyNames"]["pattern"]
            found.add(_join(key, name), None, f"the name must match {pattern}", _hint(rule))
        else:
            result[name] = _complete(item, others, _join(key, name), found)
    for name, part in properties.items():
        if name in value:
            result[name] = _complete(value[name], part, _join(key, name), found)
        elif "default" in _resolved(part):
            result[name] = _complete(_resolved(part)["default"], part, _join(key, name), found)
    return result


def _resolved(rule: dict[str, Any]) -> dict[str, Any]:
    """A rule with its `$ref` followed; what stands beside the `$ref` wins."""
    if "$ref" not in rule:
        return rule
    target = schema()["$defs"][rule["$ref"].rsplit("/", 1)[-1]]
    return {**_resolved(target), **{key: value for key, value in rule.items() if key != "$ref"}}


def _without_defaults(rule: dict[str, Any]) -> dict[str, Any]:
    """An object's rule with the same keys, of which none is filled in: for a change of some of them."""
    properties = {
        name: {key: value for key, value in _resolved(part).items() if key != "default"}
        for name, part in rule["properties"].items()
    }
    return {**rule, "properties": properties}


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def _typed(value: Any, rule: dict[str, Any]) -> Any:
    """Numbers as the schema types them: 1 and 1.0 are the same, and YAML's string '1e-6' is a number."""
    kinds = rule.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if isinstance(value, str) and {"number", "integer"} & set(kinds) and "string" not in kinds:
        if NUMBER.fullmatch(value):
            value = float(value)
    if isinstance(value, bool):
        return value
    if "number" in kinds and isinstance(value, int | float):
        return float(value)
    if "integer" in kinds and isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _hint(rule: dict[str, Any]) -> str:
    """The setting's own description, which says what it is for."""
    return str(rule.get("description", "see config/schema.yaml."))


def _allowed(error: Any) -> str:
    """What a schema error means, in words."""
    expected = error.validator_value
    listed = ", ".join(map(str, expected)) if isinstance(expected, list) else str(expected)
    words = {
        "type": f"must be {listed.replace(', ', ' or ')}",
        "enum": f"must be one of {listed}",
        "minimum": f"must be at least {expected}",
        "maximum": f"must be at most {expected}",
        "exclusiveMinimum": f"must be greater than {expected}",
        "exclusiveMaximum": f"must be less than {expected}",
        "pattern": f"must match {expected}",
        "minItems": f"must have at least {expected} entries",
        "maxItems": f"must have at most {expected} entries",
    }
    return words.get(error.validator, error.message)


def extended(given: Config, found: Complaints) -> Config:
    """A configuration laid over the preset that it `extends`, and that over what it extends in turn.

    Here and not while files are merged, because Snakemake merges them before the Snakefile can say anything.
    """
    above, seen = dict(given), list[str]()
    while (name := above.pop("extends", None)) is not None:
        known = sorted(path.stem for path in PRESETS.glob("*.yaml"))
        if name not in known:
            found.unknown("extends", name, "no such file in config/presets", known)
        elif name in seen:
            found.add("extends", name, f"goes in a circle: {' -> '.join([*seen, name])}", "end it at a whole preset.")
        if found:
            return above
        seen.append(name)
        above = merge(_read(PRESETS / f"{name}.yaml"), above)
    return above


def _read(path: Path) -> Config:
    read: Config = yaml.safe_load(path.read_text()) or {}
    return read


def load(*paths: Path, said: Config | None = None) -> Config:
    """Read and resolve configuration files as the command line would: a preset, then overlays over it.

    `said` is what `--config` says, which comes last. Where none names a preset, all lie over config/config.yaml.
    """
    merged: Config = {}
    for path in paths:
        merged = merge(merged, _read(path))
    merged = merge(merged, said or {})
    if "preset" not in merged and "extends" not in merged:
        merged = merge(_read(ROOT / "config" / "config.yaml"), merged)
    return resolve(merged)


def merge(below: Config, above: Config) -> Config:
    """`above` laid over `below`: mappings are merged key by key, everything else is replaced."""
    result = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merge(result[key], value) if both else value
    return result
