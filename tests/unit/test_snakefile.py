"""The rules as text: what each must say, and what of its params Snakemake records."""

import ast
import json
import re
from types import SimpleNamespace

import pytest

from scripts.lib.planning import cluster, config, settings
from scripts.lib.planning.plan import Plan
from scripts.lib.stage import errors
from scripts.lib.stage.digest import ROOT

FILES = [ROOT / "Snakefile", *sorted((ROOT / "rules").glob("*.smk"))]
PLAN = Plan(config.load(ROOT / "config" / "config.yaml"))


def rules() -> dict[str, dict[str, str]]:
    """Every named rule of the workflow: its directives' text by name."""
    found = {}
    for path in FILES:
        for block in re.split(r"^rule (?=\w+:$)", path.read_text(), flags=re.MULTILINE)[1:]:
            name, _, body = block.partition(":\n")
            assert name not in found, f"two rules {name}"
            indented = re.match(r"(?:(?: {4}.*)?\n)*", body).group()
            parts = re.split(r"^ {4}(\w+):", indented, flags=re.MULTILINE)
            found[name] = dict(zip(parts[1::2], parts[2::2], strict=True))
    return found


RULES = rules()
WORKING = {name: rule for name, rule in RULES.items() if "shell" in rule and "output" in rule}
TOOLS = {name: rule for name, rule in RULES.items() if "shell" in rule and "output" not in rule}
each_working = pytest.mark.parametrize("name", sorted(WORKING))


def entries(text: str) -> ast.Call:
    """A directive's entries, which have the form of a call's arguments."""
    return ast.parse(f"f({text.strip()})", mode="eval").body


def shell(name: str) -> str:
    return ast.literal_eval(f"({WORKING[name]['shell'].strip()})")


def stage_inputs(name: str) -> list[str]:
    """The inputs that scripts/NAME.py declares to stage.execute."""
    tree = ast.parse((ROOT / "scripts" / f"{name}.py").read_text())
    (call,) = [
        node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "stage.execute"
    ]
    assert ast.literal_eval(call.args[0]) == name
    return [f"--{item.rstrip('*?')}" for item in ast.literal_eval(call.args[2])]


# Rules


def test_rules_without_a_shell_are_targets_only():
    targets = {"all", "sft", "reward", "evaluation", "report", "weights", "no_such_iteration"}
    assert set(RULES) - set(WORKING) - set(TOOLS) == targets


def test_the_rules_that_make_nothing_always_run_where_the_person_is_and_quote_their_values():
    assert set(TOOLS) == {"audit", "verify", "prune"}
    for rule in TOOLS.values():
        assert "input" not in rule
        assert rule["localrule"].strip() == "True"
        line = ast.literal_eval(f"({rule['shell'].strip()})")
        assert (ROOT / "scripts" / f"{re.match(r'python -m scripts.(.*?) ', line)[1]}.py").is_file()
        assert [field for field in re.findall(r"\{[^{}]*\}", line) if not field.endswith(":q}")] == []
        assert line.endswith(" 2> {log:q}")


def test_the_workflow_has_these_stages():
    scripts = {path.stem for path in (ROOT / "scripts").glob("*.py") if "stage.execute(" in path.read_text()}
    assert set(WORKING) == scripts


@each_working
def test_every_rule_runs_the_script_of_its_name(name):
    assert (ROOT / "scripts" / f"{name}.py").is_file()
    assert shell(name).startswith(f"{{params.launch}} scripts.{name} ")


@each_working
def test_every_rule_has_a_log_that_takes_the_scripts_stderr(name):
    assert WORKING[name]["log"].strip()
    assert shell(name).endswith(" 2> {log:q}")


@each_working
def test_every_rule_names_an_environment_file_that_exists(name):
    # Rollouts are sampled in the environment of their engine.
    named = ["../envs/train.yaml", "../envs/rollout.yaml"] if name == "sample_rollouts" else []
    for file in named or [ast.literal_eval(WORKING[name]["conda"].strip())]:
        assert (ROOT / "rules" / file).is_file()


@each_working
@pytest.mark.parametrize("directive", ["input", "output", "params"])
def test_inputs_outputs_and_params_are_named(name, directive):
    assert entries(WORKING[name].get(directive, "")).args == []


@each_working
def test_every_value_in_a_shell_line_is_quoted(name):
    fields = re.findall(r"\{[^{}]*\}", shell(name))
    assert len(fields) >= 4
    # What starts the processes is several words, each of them quoted (test_cluster.py).
    assert [field for field in fields if not field.endswith(":q}")] == ["{params.launch}"]


# What steers a step without deciding its result: how processes share a model, what a base's shape is said to be.
RUNTIMES = {name: f"runtime('{name}')" for name in cluster.TRAINING} | dict.fromkeys(
    ("fetch_base", "convert_base"), "shape"
)


@each_working
def test_every_rule_records_its_own_settings_and_code(name):
    params = {item.arg: ast.unparse(item.value) for item in entries(WORKING[name]["params"]).keywords}
    assert params.pop("runtime", "RUNTIME") == RUNTIMES.get(name, "RUNTIME")
    assert f"launch('{name}'" in params.pop("launch")
    assert params.pop("results") == "RESULTS"
    assert re.match(r"source_files\('(bases|datasets|prompts)', ", params.pop("source", "source_files('bases', "))
    code = f"code('{name}')"
    assert params == {"settings": f"settings('{name}')", "code": code}
    assert callable(getattr(settings, name))


@each_working
def test_every_rule_gives_its_script_the_arguments_that_it_declares(name):
    options = re.findall(r" (--[a-z-]+) \{", shell(name))
    has_runtime = ["--runtime"] if "runtime=" in WORKING[name]["params"] else []
    assert options == ["--settings", "--code", *has_runtime, *stage_inputs(name), "--output", "--results"]


@each_working
def test_a_rule_uses_every_value_that_it_names_or_it_is_a_dependency_only(name):
    text = shell(name)
    for directive in ("input", "params"):
        for item in entries(WORKING[name].get(directive, "")).keywords:
            dependency = directive == "input" and item.arg.endswith("_digests")
            assert dependency or f"{{{directive}.{item.arg}" in text, item.arg


@each_working
def test_every_rule_declares_its_manifest_beside_its_output(name):
    outputs = {item.arg: ast.unparse(item.value) for item in entries(WORKING[name]["output"]).keywords}
    (main,) = set(outputs) - {"manifest", "digests"}
    path = re.search(r"'(<results>[^']*)'", outputs[main]).group(1)
    stem = re.sub(r"\.(parquet|html)$", "", path)
    assert outputs["manifest"] == f"'{stem}.json'"
    assert ("digests" in outputs) == outputs[main].startswith("directory(")
    assert outputs.get("digests", f"'{stem}.sha256'") == f"'{stem}.sha256'"


@each_working
def test_weight_folders_are_read_as_ancient_and_their_digests_are_the_dependency(name):
    inputs = {item.arg: ast.unparse(item.value) for item in entries(WORKING[name].get("input", "")).keywords}
    folders = {item.removesuffix("_digests") for item in inputs if item.endswith("_digests")}
    assert {item for item, text in inputs.items() if "ancient(" in text} == folders


def test_rules_that_may_make_the_same_path_are_kept_apart_by_constraints():
    outputs: dict[str, list[str]] = {}
    for name, rule in WORKING.items():
        outputs.setdefault(entries(rule["output"]).keywords[-1].value.value, []).append(name)
    for names in outputs.values():
        if len(names) > 1:
            constraints = [WORKING[name]["wildcard_constraints"].strip() for name in names]
            assert len(set(constraints)) == len(names), names


def test_no_rule_runs_python_in_the_workflow():
    assert [name for name, rule in RULES.items() if {"run", "script", "notebook", "wrapper"} & set(rule)] == []


# What Snakemake records


@pytest.fixture
def common():
    """The names that rules/common.smk defines; it is plain Python."""
    workflow = SimpleNamespace(
        resource_settings=SimpleNamespace(default_resources=None),
        deployment_settings=SimpleNamespace(deployment_method=set()),
    )
    names = {"PLAN": PLAN, "errors": errors, "WorkflowError": RuntimeError, "workflow": workflow}
    exec(compile((ROOT / "rules" / "common.smk").read_text(), "common.smk", "exec"), names)  # noqa: S102
    return SimpleNamespace(**names)


def recorded(*params):
    """What Snakemake keeps of a job's params."""
    from snakemake.persistence.file import FilePersistence

    store = object.__new__(FilePersistence)
    return FilePersistence._params.__wrapped__(store, SimpleNamespace(non_derived_params=params))


def test_snakemake_records_settings_and_code_and_not_the_runtime_keys(common):
    assert recorded("settings", "code") == ["'code'", "'settings'"]
    assert recorded("settings", "code", common.RUNTIME) == recorded("settings", "code")
    assert recorded(common.RUNTIME) == []
    assert recorded(common.RESULTS) == []
    assert recorded(common.launch("train_dpo")) == []


def test_the_runtime_keys_are_no_string_but_print_as_json(common):
    assert not isinstance(common.RUNTIME, str)
    assert json.loads(str(common.RUNTIME)) == PLAN.config["runtime"]


def test_a_training_rule_is_told_its_own_strategy_and_nobody_records_it(common):
    told = common.runtime("train_dpo")
    assert json.loads(str(told)) == PLAN.config["runtime"] | {"strategy": "data"}
    assert recorded("settings", told) == recorded("settings")
    assert recorded(told) == []


def test_the_runtime_keys_reach_the_shell_quoted(common):
    from snakemake.utils import QuotedFormatter

    assert QuotedFormatter().format("--runtime {x:q}", x=common.RUNTIME) == f"--runtime '{common.RUNTIME}'"


def test_settings_are_a_function_of_a_jobs_wildcards(common):
    wildcards = {"run": "main", "n": "2"}
    assert common.settings("train_dpo")(wildcards) == settings.of(PLAN, "train_dpo", **wildcards)


def test_complaints_of_the_plan_become_errors_of_the_workflow(common):
    with pytest.raises(RuntimeError, match="run 'main' has iterations 1 to 3"):
        common.planned(PLAN.target, "policy", 7)


def test_a_constraint_of_names_matches_these_and_nothing_else(common):
    pattern = common.only(["main", "a_b"])
    assert [bool(re.fullmatch(pattern, name)) for name in ("main", "a_b", "mai", "main2", "")] == [
        True,
        True,
        False,
        False,
        False,
    ]
    assert re.search(common.only([]), "main") is None
    assert common.of_kind("rewards", "bt") == "bt"
    assert common.of_kind("rewards", "bt", "verifier") == "bt|gold"
