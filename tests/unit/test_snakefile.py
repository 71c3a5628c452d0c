"""The rules as text: what each must say, and what of its params Snakemake records.

At start rules are held against their cards (wiring.py), and so is every planned job by tests/plan/test_wiring.py.
"""

import ast
import json
import re
from types import SimpleNamespace

import pytest

from scripts.lib.planning import config, paths, wiring
from scripts.lib.planning.cards import CARDS
from scripts.lib.planning.plan import Plan
from scripts.lib.stage import errors
from scripts.lib.stage.digest import ROOT

FILES = [ROOT / "Snakefile", *sorted((ROOT / "rules").glob("*.smk"))]
PRESETS = sorted((ROOT / "config" / "presets").glob("*.yaml"))
PLAN = Plan(config.load(ROOT / "config" / "config.yaml"))


def blocks(pattern: str) -> dict[str, dict[str, str]]:
    """The directives' text by name of every rule whose first line has this form; its group is the rule's name."""
    rules: dict[str, dict[str, str]] = {}
    for path in FILES:
        for name, body in re.findall(rf"^{pattern}\n((?:(?: {{4}}.*)?\n)*)", path.read_text(), flags=re.MULTILINE):
            assert name not in rules, f"two rules {name}"
            parts = re.split(r"^ {4}(\w+):", body, flags=re.MULTILINE)
            rules[name] = dict(zip(parts[1::2], parts[2::2], strict=True))
    return rules


PLAIN, STAGES = blocks(r"rule (\w+):"), blocks(r"use rule stage as (\w+) with:")
STAGE = PLAIN.pop("stage")
TOOLS = {name: rule for name, rule in PLAIN.items() if "shell" in rule}
each_stage = pytest.mark.parametrize("name", sorted(STAGES))


def entries(text: str) -> dict[str, str]:
    """A directive's named entries, which have the form of a call's arguments; there are no others."""
    call = ast.parse(f"f({text.strip()})", mode="eval").body
    assert not call.args, text
    return {item.arg: ast.unparse(item.value) for item in call.keywords}


def shell(rule: dict[str, str]) -> str:
    return ast.literal_eval(f"({rule['shell'].strip()})")


def declared(name: str) -> list[str]:
    """The inputs that scripts/NAME.py declares to contract.execute."""
    tree = ast.parse((ROOT / "scripts" / f"{name}.py").read_text())
    (call,) = [
        node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "contract.execute"
    ]
    assert ast.literal_eval(call.args[0]) == name
    inputs = call.args[3]
    if isinstance(inputs, ast.Name):
        (inputs,) = [node.value for node in tree.body if ast.unparse(node).startswith(f"{inputs.id} = ")]
    return list(ast.literal_eval(inputs))


# Rules


def test_rules_without_a_shell_are_targets_only():
    targets = {"all", "sft", "reward", "evaluation", "report", "weights"}
    assert set(PLAIN) - set(TOOLS) == targets


def test_the_rules_that_make_nothing_always_run_where_the_person_is_and_quote_their_values():
    assert set(TOOLS) == {"audit", "verify", "prune"}
    for rule in TOOLS.values():
        assert not {"input", "output"} & set(rule)
        assert rule["localrule"].strip() == "True"
        line = shell(rule)
        assert (ROOT / "scripts" / f"{re.match(r'python -m scripts.(.*?) ', line)[1]}.py").is_file()
        assert [field for field in re.findall(r"\{[^{}]*\}", line) if not field.endswith(":q}")] == []
        assert line.endswith(" 2> {log:q}")


def test_the_workflow_has_these_stages():
    scripts = {path.stem for path in (ROOT / "scripts").glob("*.py") if "contract.execute(" in path.read_text()}
    assert set(STAGES) == scripts == set(CARDS)


@each_stage
def test_every_rule_has_a_log_of_its_own_that_takes_the_scripts_stderr(name):
    logs = [rule["log"].strip() for rule in STAGES.values() if rule["output"] != STAGES[name]["output"]]
    assert STAGES[name]["log"].strip() not in ["", STAGE["log"].strip(), *logs]
    assert shell(STAGE).endswith(" 2> {log:q}")


def test_every_rule_names_an_environment_file_that_exists():
    assert [name for name, rule in STAGES.items() if "conda" in rule] == ["sample_rollouts"]
    # Rollouts are sampled in the environment of their engine.
    text = (ROOT / "rules" / "rollouts.smk").read_text()
    engines = ast.literal_eval(re.search(r"^ENVIRONMENTS = (.*)$", text, flags=re.MULTILINE)[1])
    for file in (ast.literal_eval(STAGE["conda"].strip()), *engines.values()):
        assert (ROOT / "rules" / file).is_file()


def test_every_value_in_the_shell_line_is_quoted():
    fields = re.findall(r"\{[^{}]*\}", shell(STAGE))
    assert len(fields) >= 4
    # What starts the processes, and the inputs, are several words, each of them quoted (test_cluster.py, and below).
    unquoted = [field for field in fields if not field.endswith(":q}")]
    assert unquoted == ["{params.launch}", "{params.inputs}"]


def test_all_rules_share_settings_code_and_command_line():
    assert entries(STAGE["params"]) == {
        "launch": "launch",
        "settings": "settings",
        "code": "code",
        "runtime": "runtime",
        "inputs": "arguments",
        "results": "RESULTS",
    }
    assert re.findall(r" (--[a-z-]+) \{", shell(STAGE)) == [
        *("--settings", "--code", "--runtime", "--output", "--results")
    ]
    assert [name for name, rule in STAGES.items() if {"params", "shell"} & set(rule)] == []


@pytest.fixture(scope="module")
def roles():
    """Stage → the roles of its jobs' inputs, over all presets."""
    names: dict[str, list[str]] = {}
    for plan in (PLAN, *(Plan(config.load(path)) for path in PRESETS)):
        for path in plan.artifacts(*plan.asked("all")):
            stage, wildcards = plan.maker(path)
            known = names.setdefault(stage, ["source*"] if CARDS[stage].sources else [])
            known += [role for role in plan.roles(stage, wildcards) if role not in known]
    return names


@each_stage
def test_every_rule_gives_its_script_the_inputs_that_it_declares(name, roles):
    assert [item.rstrip("*?") for item in declared(name)] == [
        role.rstrip("*").replace("_", "-") for role in roles[name]
    ]


@each_stage
def test_every_rule_takes_its_inputs_from_its_card(name, roles):
    text = f'unpack(inputs("{name}")),'
    assert STAGES[name].get("input", text).strip() == text
    assert ("input" in STAGES[name]) == bool([role for role in roles[name] if role != "source*"])


@each_stage
def test_every_rule_declares_its_manifest_beside_its_output(name):
    outputs = entries(STAGES[name]["output"])
    assert [*outputs] in (["artifact", "manifest"], ["artifact", "digests", "manifest"])
    path = re.search(r"'(<results>[^']*)'", outputs["artifact"])[1]
    stem = re.sub(r"\.(parquet|html)$", "", path)
    assert outputs["manifest"] == f"'{stem}.json'"
    assert ("digests" in outputs) == outputs["artifact"].startswith("directory(") == (stem == path)
    assert outputs.get("digests", f"'{stem}.sha256'") == f"'{stem}.sha256'"


def test_rules_that_may_make_the_same_path_are_kept_apart_by_constraints():
    outputs: dict[str, list[str]] = {}
    for name, rule in STAGES.items():
        outputs.setdefault(entries(rule["output"])["manifest"], []).append(name)
    shared = [name for names in outputs.values() if len(names) > 1 for name in names]
    assert len(shared) >= 2
    for name in shared:
        assert STAGES[name]["wildcard_constraints"].strip() == f'**made_by("{name}"),'


def test_no_rule_runs_python_in_the_workflow():
    every = {**PLAIN, **STAGES, "stage": STAGE}
    assert [name for name, rule in every.items() if {"run", "script", "notebook", "wrapper"} & set(rule)] == []


# Inputs, and what Snakemake records


@pytest.fixture(scope="module")
def common():
    """The names that rules/common.smk defines; it is plain Python."""
    from snakemake.io import ancient

    workflow = SimpleNamespace(
        resource_settings=SimpleNamespace(default_resources=None),
        deployment_settings=SimpleNamespace(deployment_method=set()),
    )
    names = {"PLAN": PLAN, "errors": errors, "workflow": workflow, "ancient": ancient}
    names |= {"WorkflowError": RuntimeError, "Refused": RuntimeError}
    exec(compile((ROOT / "rules" / "common.smk").read_text(), "common.smk", "exec"), names)  # noqa: S102
    return SimpleNamespace(**names)


@pytest.fixture(scope="module")
def job(common):
    """The params of the job that makes an artifact, by Snakemake's own rule: job(path) → (params, what it records)."""
    from snakemake.persistence.file import FilePersistence
    from snakemake.rules import InputFiles, OutputFiles, Rule

    rule = Rule("stage", workflow=None, lineno=0, snakefile="stage.smk")
    rule.set_params(**{name: getattr(common, value) for name, value in entries(STAGE["params"]).items()})

    def of(path):
        stage, wildcards = PLAN.maker(path)
        inputs = InputFiles()
        for role, given in common.inputs(stage)(wildcards).items():
            start = len(inputs)
            inputs.extend([given] if isinstance(given, str) else given)
            inputs._set_name(role, start, end=None if isinstance(given, str) else len(inputs))
        machine = SimpleNamespace(resources=SimpleNamespace(_cores=1))
        params, kept = rule.expand_params(wildcards, inputs, OutputFiles([path]), machine)
        store = object.__new__(FilePersistence)
        return params, FilePersistence._params.__wrapped__(store, SimpleNamespace(non_derived_params=kept))

    return of


STEP = PLAN.policy("runs/main/iter2")
STEP_OF = "train_dpo", {"run": "main", "n": "2"}


def test_weight_folders_are_read_as_ancient_and_their_digests_are_the_dependency(common):
    from snakemake.io import is_flagged

    folders = set()
    for path in PLAN.artifacts(*PLAN.asked("all")):
        given = common.inputs(PLAN.maker(path)[0])(PLAN.maker(path)[1])
        listed = {role: [read] if isinstance(read, str) else read for role, read in given.items()}
        old = {str(read) for reads in listed.values() for read in reads if is_flagged(read, "ancient")}
        assert old == {read for read in PLAN.reads(path) if paths.is_folder(read)}
        for role, reads in listed.items():
            if old & {*map(str, reads)}:
                assert listed[f"{role}_digests"] == [f"{read}.sha256" for read in reads]
        folders |= old
    assert {STEP, PLAN.policy("sft/tiny")} < folders


def test_snakemake_records_settings_and_code_and_nothing_else(job):
    params, recorded = job(STEP)
    assert [*params.keys()] == ["launch", "settings", "code", "runtime", "inputs", "results"]
    assert recorded == sorted([repr(PLAN.settings_json(*STEP_OF)), repr(PLAN.code(*STEP_OF))])
    for path in PLAN.artifacts(*PLAN.asked("all")):
        assert len(job(path)[1]) == 2, path


def test_settings_and_code_are_functions_of_a_jobs_wildcards(job):
    params, _ = job(STEP)
    assert params.settings == PLAN.settings_json(*STEP_OF)
    assert params.code == PLAN.code(*STEP_OF)
    others = [PLAN.policy("runs/main/iter1"), PLAN.policy("runs/raft/iter1")]
    assert params.settings not in [job(path)[0].settings for path in others]


def test_a_step_that_computes_is_told_the_runtime_keys_and_one_that_trains_how_its_processes_share_the_model(job):
    keys = PLAN.config.runtime.model_dump(mode="json")
    told = job(STEP)[0].runtime
    assert not isinstance(told, str)
    assert json.loads(str(told)) == keys | {"sharding": "data"}
    assert json.loads(str(job(PLAN.rollouts("sft/tiny", "best_of_8", "requests-1")[0])[0].runtime)) == keys
    assert json.loads(str(job(PLAN.dataset("demonstrations"))[0].runtime)) == {}


def test_values_reach_the_shell_quoted(job, monkeypatch):
    from snakemake.utils import QuotedFormatter

    params, _ = job(STEP)
    assert QuotedFormatter().format("--runtime {x:q}", x=params.runtime) == f"--runtime '{params.runtime}'"
    monkeypatch.setattr(PLAN, "roles", lambda stage, wildcards: {"start": "a b", "pairs": ["c", "$d"]})
    params, _ = job(STEP)
    assert str(params.inputs) == "--start 'a b' --pairs c '$d'"


def test_inputs_that_are_not_the_cards_are_refused(common):
    with pytest.raises(
        RuntimeError, match="card train_dpo: inputs: the rule's input 'start' is not what the card says"
    ):
        common.arguments(None, {"start": "another"}, [STEP])


def test_complaints_of_the_plan_become_errors_of_the_workflow(common):
    with pytest.raises(RuntimeError, match="run 'main' has iterations 1 to 3"):
        common.planned(PLAN.target, "policy", 7)


def test_a_constraint_of_names_matches_these_and_nothing_else(common):
    pattern = wiring.only(["main", "a_b"])
    assert [bool(re.fullmatch(pattern, name)) for name in ("main", "a_b", "mai", "main2", "")] == [
        True,
        True,
        False,
        False,
        False,
    ]
    assert re.search(wiring.only([]), "main") is None
    assert common.made_by("train_reward") == {"reward": "bt"}
    assert common.made_by("train_dpo") == {"run": "main|once|offline"}
