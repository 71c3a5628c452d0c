"""Rooms: which may import which, no circles, and what must not be reached from where."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter

import pytest

from scripts.lib.kinds import families
from tests.conftest import ROOT

# Room → the rooms that its modules may import, beside their own. A stage is a script that a rule runs, a tool is one
# that a person runs. No room, and no other script, may import one.
ALLOWED = {
    "kinds": set(),
    "stage": {"kinds"},
    "data": {"stage", "kinds"},
    "models": {"data", "stage", "kinds"},
    "labels": {"models", "data", "stage", "kinds"},
    "benchmarks": {"models", "data", "stage", "kinds"},
    "report": {"data", "stage", "kinds"},
    "planning": {"data", "stage", "kinds"},
    "stages": {"report", "models", "data", "stage", "kinds"},
    "tools": {"planning", "data", "stage", "kinds"},
    "rules": {"planning", "stage", "kinds"},
}
# Module → a room that may import it although the table says otherwise: digests of the files that a page is laid out by.
EXCEPTIONS = {"scripts.lib.report.templates": "planning"}
SCRIPTS = {"stages", "tools"}
# What takes seconds to import, or is not installed where a plan is made.
HEAVY = {"torch", "transformers", "trl", "peft", "deepspeed", "vllm", "datasets", "snakemake"}


def name_of(path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {name_of(path): path for path in sorted((ROOT / "scripts").rglob("*.py"))}
TREES = {name: ast.parse(path.read_text()) for name, path in FILES.items()}


def imports(tree: ast.AST) -> Iterator[str]:
    """Full names of what a tree imports, wherever in the file: modules of this repository, or packages."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in FILES else str(node.module)


IMPORTS = {name: set(imports(tree)) for name, tree in TREES.items()}
MEMBERS = {
    families.module(f"{family}/{name}"): family for family in families.FOLDERS for name in families.names(family)
}


def room(module: str) -> str:
    """The room of a module of this repository; an empty package is in none."""
    parts = module.split(".")
    if parts[1:2] == ["lib"]:
        return parts[2] if len(parts) > 2 else ""
    if len(parts) == 1:
        return ""
    return "stages" if "scripts.lib.stage.contract" in IMPORTS[module] else "tools"


def reached(module: str) -> set[str]:
    """What a module imports, itself or through others."""
    found, pending = set[str](), [module]
    while pending:
        new = IMPORTS.get(pending.pop(), set()) - found
        found |= new
        pending += new
    return found


def allowed(importer: str, module: str) -> bool:
    """Whether a room may import a module."""
    other = room(module)
    if EXCEPTIONS.get(module) == importer:
        return True
    return other in ALLOWED[importer] or (other == importer and importer not in SCRIPTS)


def test_every_module_is_in_a_room():
    rooms = {room(module) for module, tree in TREES.items() if tree.body}
    assert rooms <= ALLOWED.keys()
    assert {"stages", "tools", "stage", "planning", "data", "models"} <= rooms


def test_a_stage_is_what_a_rule_runs_and_the_rest_are_tools():
    rules = "".join(file.read_text() for file in (ROOT / "rules").glob("*.smk"))
    named = set(re.findall(r"^use rule stage as (\w+) with:", rules, re.MULTILINE))
    scripts = {module.removeprefix("scripts.") for module in FILES if room(module) in SCRIPTS}
    assert {name for name in scripts if room(f"scripts.{name}") == "stages"} == named & scripts


@pytest.mark.parametrize("importer", sorted(ALLOWED.keys() - {"rules"}))
def test_a_room_imports_only_what_it_may(importer):
    wrong = [
        f"{module} imports {other}"
        for module in FILES
        if room(module) == importer
        for other in sorted(IMPORTS[module])
        if other in FILES and not allowed(importer, other)
    ]
    assert wrong == []


def test_the_workflow_imports_only_what_it_may():
    lines = [
        line.strip()
        for file in (ROOT / "Snakefile", *sorted((ROOT / "rules").glob("*.smk")))
        for line in file.read_text().splitlines()
        if re.match(r"\s*(from|import) +scripts\b", line)
    ]
    assert lines
    wrong = [line for line in lines for other in imports(ast.parse(line)) if not allowed("rules", other)]
    assert wrong == []


def test_every_exception_is_needed():
    used = {(other, room(module)) for module in FILES for other in IMPORTS[module]}
    assert EXCEPTIONS.items() <= used


def test_the_table_of_rooms_has_no_circle():
    TopologicalSorter(ALLOWED).prepare()


def test_no_modules_import_each_other_in_a_circle():
    TopologicalSorter({module: IMPORTS[module] & FILES.keys() for module in FILES}).prepare()


def test_packages_are_empty_since_code_digests_do_not_follow_them():
    packages = [name for name, path in FILES.items() if path.name == "__init__.py"]
    # Planning is in no digest; elsewhere a docstring is all that a package may hold.
    held = [name for name in packages if [node for node in TREES[name].body if not isinstance(node, ast.Expr)]]
    assert held == ["scripts.lib.planning.cards"]


# What must not be reached


@pytest.mark.parametrize("module", sorted(module for module in FILES if room(module) in ("planning", "kinds")))
def test_planning_imports_no_heavy_package_not_even_inside_a_function(module):
    assert {name.split(".")[0] for name in reached(module)} & HEAVY == set()


def test_planning_and_the_tools_load_no_heavy_package():
    modules = [module for module in FILES if room(module) in ("planning", "kinds", "tools")]
    code = f"import sys, {', '.join(modules)}\nprint(sorted({HEAVY!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_no_running_stage_reaches_planning():
    running = [module for module in FILES if room(module) not in ("planning", "tools")]
    assert [module for module in running if any(room(m) == "planning" for m in reached(module) & FILES.keys())] == []


# Families


def test_a_member_of_a_family_is_imported_by_members_of_its_own_only():
    wrong = [
        f"{module} imports {other}"
        for module in FILES
        for other in sorted(IMPORTS[module] & MEMBERS.keys())
        if MEMBERS.get(module) != MEMBERS[other]
    ]
    assert wrong == []


def test_every_module_of_a_familys_folder_is_a_member():
    folders = {f"scripts.lib.{folder.replace('/', '.')}." for folder in families.FOLDERS.values()}
    assert {module for module in FILES if module.startswith(tuple(folders))} == set(MEMBERS)


def test_what_is_imported_by_name_is_a_member_or_another_package():
    # An import that only shows when it runs is in no digest, unless the settings name the member.
    names = [
        (module, ast.unparse(node.args[0]))
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in ("import_module", "__import__")
    ]
    own = [module for module, name in names if not re.fullmatch(r"'(?!scripts\b)[\w.]+'", name)]
    assert own == ["scripts.lib.kinds.families", "scripts.lib.planning.cards"]
