"""Configuration: defaults from the schema, types from the schema, all errors at once.

`resolve` turns what the user wrote into a whole configuration. Nothing is queued before it has passed. The module
imports neither torch nor Snakemake, so that a plan costs milliseconds.
"""

import difflib
import re
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator

from scripts.lib.digest import ROOT
from scripts.lib.errors import ConfigError

Config = dict[str, Any]
NAME = re.compile(r"[a-z0-9_]+")
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
NAMED_BLOCKS = ("bases", "datasets", "prompts", "sft", "rewards", "samplings", "pairings", "runs", "evaluation")


@cache
def schema() -> dict[str, Any]:
    """The configuration's JSON Schema, checked against its own meta-schema."""
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "config" / "schema.yaml").read_text())
    Draft202012Validator.check_schema(loaded)
    return loaded


def resolve(given: Config) -> Config:
    """The whole configuration: `given` over the schema's defaults, numbers typed, references checked.

    Raises ConfigError that lists every error with its key, its value, what is allowed, and a hint.
    """
    errors: list[str] = []
    config = _complete(given, schema(), "", errors)
    if not errors:
        _check_names(config, errors)
    if not errors:
        _check_references(config, errors)
    if errors:
        count = f"{len(errors)} error{'s' * (len(errors) > 1)}"
        raise ConfigError(f"config: {count}\n" + "\n".join(f"  - {e}" for e in errors))
    config["results"] = config["results"] or f"results/{config['preset']}"
    config["run"] = config["run"] or next(iter(config["runs"]))
    return config


def _complete(value: Any, rule: dict[str, Any], key: str, errors: list[str]) -> Any:
    """`value` with defaults filled in and numbers typed as the schema says; what does not fit goes to `errors`."""
    if "$ref" in rule:
        target: Any = schema()
        for part in rule["$ref"].removeprefix("#/").split("/"):
            target = target[part]
        rule = {**target, **{k: v for k, v in rule.items() if k != "$ref"}}
    if "oneOf" in rule:
        rule = _choose_kind(value, rule["oneOf"], key, errors)
        if not rule:
            return value
    if isinstance(value, dict) and ("properties" in rule or "additionalProperties" in rule):
        return _complete_object(value, rule, key, errors)
    value = _typed(value, rule)
    found = list(Draft202012Validator(rule).iter_errors(value))
    if found:
        errors.append(f"{key or 'config'} = {value!r}: {_allowed(found[0], rule)}")
    elif isinstance(value, list) and "items" in rule:
        return [_complete(item, rule["items"], f"{key}[{i}]", errors) for i, item in enumerate(value)]
    return value


def _choose_kind(value: Any, choices: list[dict[str, Any]], key: str, errors: list[str]) -> dict[str, Any]:
    kinds = {}
    for choice in choices:
        target = schema()["$defs"][choice["$ref"].rsplit("/")[-1]]
        kinds[target["properties"]["kind"]["const"]] = target
    kind = value.get("kind") if isinstance(value, dict) else None
    if kind in kinds:
        return dict(kinds[kind])
    errors.append(f"{key}.kind = {kind!r}: must be one of {', '.join(kinds)}{_nearest(kind, kinds)}")
    return {}


def _complete_object(value: Config, rule: dict[str, Any], key: str, errors: list[str]) -> Config:
    properties, others = rule.get("properties", {}), rule.get("additionalProperties")
    result: Config = {}
    for name in rule.get("required", []):
        if name not in value:
            errors.append(
                f"{_join(key, name)}: missing. Hint: {properties[name].get('description', 'it is required.')}"
            )
    if len(value) < rule.get("minProperties", 0):
        errors.append(f"{key}: is empty. Hint: give it at least one entry.")
    for raw, item in value.items():
        name = str(raw)
        if name in properties:
            continue
        if others is False or others is None:
            errors.append(f"{_join(key, name)}: unknown key{_nearest(name, properties)}")
        elif "propertyNames" in rule and not re.search(rule["propertyNames"]["pattern"], name):
            errors.append(f"{_join(key, name)}: the name must match {rule['propertyNames']['pattern']}")
        else:
            result[name] = _complete(item, others, _join(key, name), errors)
    for name, part in properties.items():
        if name in value:
            result[name] = _complete(value[name], part, _join(key, name), errors)
        else:
            target = schema()["$defs"][part["$ref"].rsplit("/")[-1]] if "$ref" in part else {}
            merged = {**target, **part}
            if "default" in merged:
                result[name] = _complete(merged["default"], part, _join(key, name), errors)
    return result


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def _nearest(name: Any, known: Any) -> str:
    near = difflib.get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=0.5)
    if near:
        return f". Hint: did you mean {near[0]}?"
    return f". Hint: known are {', '.join(map(str, known)) or 'none'}."


def _types(rule: dict[str, Any]) -> list[str]:
    kinds = rule.get("type", [])
    return [kinds] if isinstance(kinds, str) else list(kinds)


def _typed(value: Any, rule: dict[str, Any]) -> Any:
    """Numbers as the schema types them: 1 and 1.0 are the same, and YAML's string '1e-6' is a number."""
    kinds = _types(rule)
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


def _allowed(error: Any, rule: dict[str, Any]) -> str:
    """What a schema error means, in words, with the setting's description as the hint."""
    expected = error.validator_value
    text = {
        "type": f"must be {' or '.join(expected) if isinstance(expected, list) else expected}",
        "enum": f"must be one of {', '.join(map(str, expected)) if isinstance(expected, list) else expected}",
        "minimum": f"must be at least {expected}",
        "maximum": f"must be at most {expected}",
        "exclusiveMinimum": f"must be greater than {expected}",
        "exclusiveMaximum": f"must be less than {expected}",
        "pattern": f"must match {expected}",
        "minItems": f"must have at least {expected} entries",
        "maxItems": f"must have at most {expected} entries",
    }.get(error.validator, error.message)
    if error.validator == "enum" and isinstance(error.instance, str):
        text += _nearest(error.instance, expected)
    where = "".join(f"[{part}]" for part in error.absolute_path)
    hint = f" Hint: {rule['description']}" if "description" in rule and "Hint" not in text else ""
    return f"{where + ' ' if where else ''}{text}.{hint}".replace("..", ".")


def _check_names(config: Config, errors: list[str]) -> None:
    for block in NAMED_BLOCKS:
        for name in config[block]:
            if not NAME.fullmatch(name):
                errors.append(f"{block}.{name}: names become folder names. Hint: use a-z, 0-9 and _ only.")


def _check_references(config: Config, errors: list[str]) -> None:
    """Every name that a block refers to must exist, and the numbers of different blocks must fit each other."""

    def refer(key: str, name: str | None, block: str, **wanted: str) -> Config | None:
        if name is None:
            return None
        if name not in config[block]:
            errors.append(f"{key} = {name!r}: no such entry in {block}{_nearest(name, config[block])}")
            return None
        target: Config = config[block][name]
        for field, value in wanted.items():
            if target.get(field) != value:
                errors.append(f"{key} = {name!r}: {block}.{name}.{field} is {target.get(field)!r}, must be {value!r}.")
                return None
        return target

    if config["run"] is not None:
        refer("run", config["run"], "runs")
    for name, sft in config["sft"].items():
        refer(f"sft.{name}.base", sft["base"], "bases")
        refer(f"sft.{name}.dataset", sft.get("dataset"), "datasets", type="conversations")
    for name, reward in config["rewards"].items():
        if reward["kind"] == "bt":
            block, _, target = reward["init"].partition("/")
            if block not in ("sft", "base"):
                errors.append(f"rewards.{name}.init = {reward['init']!r}: must be sft/NAME or base/NAME.")
            else:
                refer(f"rewards.{name}.init", target, {"sft": "sft", "base": "bases"}[block])
            refer(f"rewards.{name}.dataset", reward["dataset"], "datasets", type="preferences")
            refer(f"rewards.{name}.heldout", reward["heldout"], "datasets", type="preferences")
            if reward["heldout"] == reward["dataset"]:
                errors.append(
                    f"rewards.{name}.heldout = {reward['heldout']!r}: is the training set. Hint: hold out other pairs."
                )
    for name, sampling in config["samplings"].items():
        if sampling["k"] % len(sampling["temperatures"]):
            errors.append(
                f"samplings.{name}.k = {sampling['k']}: is not a multiple of its {len(sampling['temperatures'])} "
                "temperatures. Hint: K is split into equal blocks."
            )
    for name, pairing in config["pairings"].items():
        if pairing["chosen_quantile"] <= pairing["rejected_quantile"]:
            errors.append(
                f"pairings.{name}.chosen_quantile = {pairing['chosen_quantile']}: must be above rejected_quantile."
            )
    for name, block in config["datasets"].items():
        if block["kind"] == "world" and (block["split"] == "sft") != (block["type"] == "conversations"):
            errors.append(
                f"datasets.{name}.split = {block['split']!r}: does not hold {block['type']}. "
                "Hint: conversations are in sft, preferences in reward and reward_heldout."
            )
    for name, block in [*config["datasets"].items(), *config["prompts"].items()]:
        if "part" in block and block["part"][0] >= block["part"][1]:
            errors.append(f"part of {name} = {block['part']}: the first number must be below the second.")
    for name, evaluation in config["evaluation"].items():
        refer(f"evaluation.{name}.prompts", evaluation["prompts"], "prompts")
        sampling = refer(f"evaluation.{name}.sampling", evaluation["sampling"], "samplings")
        if sampling and not sampling["record_logprobs"]:
            errors.append(
                f"evaluation.{name}.sampling = {evaluation['sampling']!r}: must have record_logprobs: true. "
                "Hint: the KL to the SFT policy needs them."
            )
        for reward in evaluation["rewards"]:
            refer(f"evaluation.{name}.rewards", reward, "rewards")
    for name, run in config["runs"].items():
        _check_run(config, name, run, refer, errors)
    _check_batches(config, errors)


def _check_run(config: Config, name: str, run: Config, refer: Any, errors: list[str]) -> None:
    key = f"runs.{name}"
    refer(f"{key}.sft", run["sft"], "sft")
    refer(f"{key}.prompts", run["prompts"], "prompts")
    for number, own in run["each"].items():
        if int(number) > run["iterations"]:
            errors.append(f"{key}.each.{number}: the run has iterations 1 to {run['iterations']}.")
        for method in ("dpo", "raft"):
            if own[method]:
                _complete(
                    {**run[method], **own[method]}, schema()["$defs"][method], f"{key}.each.{number}.{method}", errors
                )
        refer(f"{key}.each.{number}.reward", own["reward"], "rewards")
        refer(f"{key}.each.{number}.pairing", own["pairing"], "pairings")
        refer(f"{key}.each.{number}.sampling", own["sampling"], "samplings")
    if run["prompts"] is None:
        if run["method"] != "dpo" or not run["mix"]:
            errors.append(
                f"{key}.prompts: missing. Hint: only a dpo run with a `mix` of curated preferences can do without."
            )
    else:
        for field in ("reward", "sampling", *(["pairing"] if run["method"] == "dpo" else [])):
            if run[field] is None:
                errors.append(f"{key}.{field}: missing. Hint: name one of {field + 's'}.")
        refer(f"{key}.reward", run["reward"], "rewards")
        refer(f"{key}.pairing", run["pairing"], "pairings")
        sampling = refer(f"{key}.sampling", run["sampling"], "samplings")
        needed = sampling["max_prompt_tokens"] + sampling["max_new_tokens"] if sampling else 0
        longest = run[run["method"]]["max_length"]
        if longest < needed:
            errors.append(
                f"{key}.{run['method']}.max_length = {longest}: prompts and responses have up to {needed} tokens. "
                f"Hint: raise it, or lower max_prompt_tokens or max_new_tokens of samplings.{run['sampling']}."
            )
    for i, part in enumerate(run["mix"]):
        refer(f"{key}.mix[{i}].dataset", part["dataset"], "datasets", type="preferences")
        refer(f"{key}.mix[{i}].pairing", part["pairing"], "pairings")
    weights, losses = run["dpo"]["loss_weights"], run["dpo"]["loss"]
    if weights is not None and len(weights) != len(losses):
        errors.append(f"{key}.dpo.loss_weights = {weights}: must have one number for each of {losses}.")
    if "exo_pair" in losses and run["dpo"]["label_smoothing"] == 0:
        errors.append(f"{key}.dpo.label_smoothing = 0: exo_pair needs more than 0. Hint: its paper uses 0.001.")


def _check_batches(config: Config, errors: list[str]) -> None:
    """The micro-batch must divide every batch: the rest is gradient accumulation."""
    blocks = {
        f"{block}.{name}": entry
        for block in ("bases", "sft", "rewards")
        for name, entry in config[block].items()
        if "batch_size" in entry
    }
    blocks |= {f"runs.{name}.{run['method']}": run[run["method"]] for name, run in config["runs"].items()}
    for key, entry in blocks.items():
        micro = min(config["runtime"]["train_micro_batch"], entry["batch_size"])
        if entry["batch_size"] % micro:
            errors.append(
                f"runtime.train_micro_batch = {micro}: does not divide {key}.batch_size = {entry['batch_size']}. "
                "Hint: choose a divisor; the rest is made up for by gradient accumulation."
            )


def load(*paths: Path) -> Config:
    """Read and resolve configuration files as the command line would: a preset, then overlays over it.

    A first file without a `preset` key is an overlay over config/config.yaml.
    """
    merged: Config = {}
    for path in paths:
        given = yaml.safe_load(path.read_text()) or {}
        merged = merge(merged, given)
    if "preset" not in merged:
        merged = merge(yaml.safe_load((ROOT / "config" / "config.yaml").read_text()), merged)
    return resolve(merged)


def merge(below: Config, above: Config) -> Config:
    """`above` laid over `below`: mappings are merged key by key, everything else is replaced."""
    result = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merge(result[key], value) if both else value
    return result
