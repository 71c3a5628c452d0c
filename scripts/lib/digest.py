"""Digests of code and of bytes: what decides whether something must be made again.

The digest of a stage's code covers the canonical syntax tree of its module and of every module of this
repository that it imports, directly or through others. Comments, docstrings and formatting are left out, so
that they never cause a rebuild; a changed constant always does. The pinned versions of the packages that decide
results stand beside the modules.
"""

import ast
import hashlib
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PINS = "envs/requirements-train.txt"
# An engine that generates has a module of its own, and may have an environment of its own: its pins count before those
# of training.
ENGINE = "scripts.lib.engine_"
ENGINE_PINS = {"vllm": "envs/requirements-rollout.txt"}
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
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        found.update(name for name in names if name.split(".")[0] == "scripts" and _module_path(name))
        found.update(DECIDING.intersection(name.split(".")[0] for name in names))
    return found


@cache
def _module(module: str) -> tuple[str, frozenset[str]]:
    path = _module_path(module)
    if path is None:
        raise ValueError(f"no module {module} under {ROOT}\nHint: stages live in scripts/, helpers in scripts/lib/.")
    tree = ast.parse(path.read_text(), filename=str(path))
    return text_sha256(repr(_canonical(tree))), frozenset(_imports(tree))


@cache
def pins(engine: str | None = None) -> dict[str, str]:
    """Package → pinned version, as the requirement file of the training environment or of the engine's asks for it."""
    files = [PINS, *([ENGINE_PINS[engine]] if engine in ENGINE_PINS else [])]
    lines = [line for file in files for line in (ROOT / file).read_text().splitlines()]
    named = [line.split("==") for line in lines if "==" in line and not line.startswith("#")]
    return {name.strip(): version.strip() for name, version in named}


@cache
def code_digest(stage: str, engine: str | None = None) -> str:
    """Readable digest of a stage's code, such as `train_dpo:31fc02 chat:9a0b11 … torch==2.13.0`.

    Each entry is a module's last name and the first 10 hex digits of its canonical syntax tree's SHA-256, the
    stage first and its in-repository imports in alphabetical order. Empty modules are left out. Then come the pinned
    versions of the deciding packages that any of these modules imports. With an `engine` the modules of the others do
    not count: what they generate stays when this one's code changes.
    """
    pending, seen = [f"scripts.{stage}"], set[str]()
    while pending:
        name = pending.pop()
        if engine and name.startswith(ENGINE) and name != ENGINE + engine:
            continue
        if name not in seen:
            seen.add(name)
            pending.extend(_module(name)[1] if name not in DECIDING else ())
    empty = text_sha256(repr(_canonical(ast.parse(""))))
    modules = sorted(seen - DECIDING, key=lambda name: (name != f"scripts.{stage}", name))
    digests = [f"{name.rsplit('.')[-1]}:{_module(name)[0][:10]}" for name in modules if _module(name)[0] != empty]
    asked = sorted(name for name in seen & DECIDING if name in pins(engine))
    return " ".join([*digests, *(f"{name}=={pins(engine)[name]}" for name in asked)])
