"""Digests of code and of bytes: what decides whether something must be made again.

The digest of a stage's code covers the canonical syntax tree of its module and of every module of this repository that
it imports, directly or through others. Comments, docstrings and formatting are left out, so they never cause a rebuild;
a changed constant always does. The pinned versions of the packages that decide results stand beside the modules.

Two rooms are left out. `planning` runs in no stage. `stage` is plumbing: it says where, when and how safely a step
works, never what comes out. A change of the plumbing that does change bytes must raise FORMAT, which stands in every
digest; the same-bytes test catches what is forgotten. Of a family only the members that the settings choose count.
"""

import ast
import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from scripts.lib.kinds import families

ROOT = Path(__file__).resolve().parents[3]
# Raise it when a change in scripts/lib/stage changes what any stage writes: every artifact is then made again.
FORMAT = 1
NOT_DIGESTED = ("scripts.lib.stage.", "scripts.lib.planning.", "scripts.lib.kinds.")
PLUMBING = ("stage", "kinds")
PINS = "envs/requirements-train.txt"
# A member with an environment of its own: its pins count before those of training.
MEMBER_PINS = {"engines/vllm": "envs/requirements-rollout.txt"}
# Another release of one of these may give other results; one of the rest should not.
DECIDING = frozenset({"torch", "transformers", "trl", "peft", "deepspeed", "vllm"})


def file_sha256(path: Path | str) -> str:
    """SHA-256 of a file's bytes, as 64 hex digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def text_sha256(text: str) -> str:
    """SHA-256 of a text's UTF-8 bytes, as 64 hex digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def _canonical(node: object) -> object:
    """A syntax node as nested tuples, without positions, docstrings or empty fields.

    `ast.dump` is not used because its output differs between Python versions.
    """
    if isinstance(node, ast.AST):
        fields = []
        for name, value in ast.iter_fields(node):
            if name == "body" and isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                value = _without_docstring(value)
            if name in ("type_comment", "kind", "ctx") or value is None or value == []:
                continue
            fields.append((name, _canonical(value)))
        return (type(node).__name__, *fields)
    if isinstance(node, list):
        return tuple(_canonical(item) for item in node)
    return f"{type(node).__name__}:{node!r}"


def _without_docstring(body: list[ast.stmt]) -> list[ast.stmt]:
    first = body[0] if body else None
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        return body[1:]
    return body


def _module_path(module: str) -> Path | None:
    path = ROOT.joinpath(*module.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def _imports(tree: ast.AST) -> set[str]:
    """In-repository modules and deciding packages that a tree imports, wherever in the file the import stands."""
    imported: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        imported.update(name for name in names if name.split(".")[0] == "scripts" and _module_path(name))
        imported.update(DECIDING.intersection(name.split(".")[0] for name in names))
    return imported


@cache
def _module(module: str) -> tuple[str, frozenset[str]]:
    path = _module_path(module)
    if path is None:
        raise ValueError(f"no module {module} under {ROOT}\nHint: stages live in scripts/, helpers in scripts/lib/.")
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    return text_sha256(repr(_canonical(tree))), frozenset(_imports(tree))


@cache
def pins(members: tuple[str, ...] = ()) -> dict[str, str]:
    """Package → pinned version, as the requirement files of the training environment and of the members ask for it."""
    files = [PINS, *(MEMBER_PINS[member] for member in members if member in MEMBER_PINS)]
    lines = [line for file in files for line in (ROOT / file).read_text(encoding="utf-8").splitlines()]
    named = [line.split("==") for line in lines if "==" in line and not line.startswith("#")]
    return {name.strip(): version.strip() for name, version in named}


def code_digest(stage: str, settings: Mapping[str, Any] | None = None) -> str:
    """Readable digest of a stage's code, such as `train_dpo:31fc02 models.chat:9a0b11 … format:1 torch==2.13.0`.

    Each entry is a module with the first 10 hex digits of its canonical syntax tree's SHA-256: the stage first, then
    its in-repository imports and the family members that `settings` choose, in alphabetical order. Empty modules are
    left out. Then come FORMAT and the pinned versions of the deciding packages that any of these modules imports.

    Raises ValueError for a stage without a module.
    """
    return _code_digest(stage, families.chosen(settings or {}))


@cache
def _code_digest(stage: str, members: tuple[str, ...]) -> str:
    pending, seen = [f"scripts.{stage}", *map(families.module, members)], set[str]()
    while pending:
        name = pending.pop()
        if name not in seen and not f"{name}.".startswith(NOT_DIGESTED):
            seen.add(name)
            pending.extend(_module(name)[1] if name not in DECIDING else ())
    empty = text_sha256(repr(_canonical(ast.parse(""))))
    modules = sorted(seen - DECIDING, key=lambda name: (name != f"scripts.{stage}", name))
    digests = [f"{_short(name)}:{_module(name)[0][:10]}" for name in modules if _module(name)[0] != empty]
    asked = sorted(name for name in seen & DECIDING if name in pins(members))
    return " ".join([*digests, f"format:{FORMAT}", *(f"{name}=={pins(members)[name]}" for name in asked)])


def _short(module: str) -> str:
    return module.removeprefix("scripts.").removeprefix("lib.")


def plumbing_digest() -> str:
    """16 hex digits of the rooms that no code digest covers; kept with the facts of a run, for audits."""
    files = sorted(path for room in PLUMBING for path in (ROOT / "scripts" / "lib" / room).rglob("*.py"))
    trees = [(path.name, _canonical(ast.parse(path.read_text(encoding="utf-8")))) for path in files]
    return text_sha256(repr(trees))[:16]
