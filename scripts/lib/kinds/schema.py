"""The JSON Schema of the models and what its rules allow: for errors, and for the reference."""

from functools import cache
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from scripts.lib.kinds.config import Config

Rule = dict[str, Any]


class _WithoutTitles(GenerateJsonSchema):
    """A key's title would only repeat its name."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


@cache
def schema() -> Rule:
    """The JSON Schema of a whole configuration."""
    return Config.model_json_schema(schema_generator=_WithoutTitles)


def resolved(rule: Rule) -> Rule:
    """A rule with its `$ref` followed and null set aside in `nullable`; what stands beside the `$ref` wins."""
    if "$ref" in rule:
        target = resolved(schema()["$defs"][rule["$ref"].rsplit("/", 1)[-1]])
        return {**target, **{key: value for key, value in rule.items() if key != "$ref"}}
    if "anyOf" in rule:
        (other,) = [part for part in rule["anyOf"] if part.get("type") != "null"]
        beside = {key: value for key, value in rule.items() if key != "anyOf"}
        return {**resolved(other), **beside, "nullable": True}
    return rule


def kinds(rule: Rule) -> dict[str, Rule]:
    """The rules that a block's `kind`, or the type of a value, chooses between; empty where there is no choice."""
    parts = [resolved(part) for part in rule.get("oneOf", [])]
    return {part["properties"]["kind"]["const"] if "properties" in part else part["type"]: part for part in parts}


def entries(rule: Rule) -> Rule:
    """The rule of what stands under the names of a mapping; empty for a block of known keys."""
    named = rule.get("patternProperties", {"": rule.get("additionalProperties")})
    return next(iter(named.values())) or {}


def types(rule: Rule) -> str:
    """The types that a rule allows, in JSON's words, such as `integer or null`."""
    named = [*kinds(rule)] if "oneOf" in rule else [rule["type"]]
    return " or ".join([*named, *(["null"] if rule.get("nullable") else [])])


def values(rule: Rule) -> list[str]:
    """The values that a rule lists; empty where it lists none."""
    listed = rule.get("enum") or ([rule["const"]] if "const" in rule else [])
    return [str(value) for value in listed] + (["null"] if listed and rule.get("nullable") else [])
