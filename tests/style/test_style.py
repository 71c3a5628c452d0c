"""Formatting, lint and types are facts too."""

import ast
from collections.abc import Iterator

import pytest

from tests.conftest import ROOT, run


@pytest.mark.parametrize(
    "command",
    [
        ("ruff", "check", "."),
        ("ruff", "format", "--check", "."),
        ("mypy",),
        ("snakefmt", "--check", "Snakefile", "rules"),
        ("snakemake", "--lint"),
    ],
    ids=" ".join,
)
def test_style(command):
    run(ROOT, *command)


def calls(name: str) -> Iterator[tuple[str, ast.Call]]:
    """`file:line` and node of every call of a function or method of this name in the product."""
    for path in sorted((ROOT / "scripts").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and name in (getattr(node.func, "attr", ""), getattr(node.func, "id", "")):
                yield f"{path.relative_to(ROOT)}:{node.lineno}", node


def binary(call: ast.Call) -> bool:
    modes = [each.value for each in call.args if isinstance(each, ast.Constant) and isinstance(each.value, str)]
    return any("b" in mode for mode in modes)


@pytest.mark.parametrize("name", ["read_text", "write_text", "open"])
def test_no_text_is_read_or_written_in_the_locales_encoding(name):
    """os.open and gzip.open (binary by default) have no encoding; our own write_text has one inside."""
    other = {"os", "gzip", "artifact"}
    wrong = [
        place
        for place, call in calls(name)
        if not binary(call)
        and "encoding" not in {each.arg for each in call.keywords}
        and isinstance(call.func, ast.Attribute)
        and getattr(call.func.value, "id", "") not in other
    ]
    assert wrong == []


@pytest.mark.parametrize("keyword", ["text", "universal_newlines"])
def test_no_output_of_a_program_is_read_in_the_locales_encoding(keyword):
    for name in ("run", "Popen", "check_output"):
        assert [place for place, call in calls(name) if keyword in {each.arg for each in call.keywords}] == []


@pytest.mark.parametrize("name", ["read_parquet", "scan_parquet", "read_ndjson", "scan_ndjson", "read_csv", "scan_csv"])
def test_one_reader_reads_tables_because_polars_takes_paths_for_patterns(name):
    allowed = "scripts/lib/stage/parquet.py:" if name == "read_parquet" else "nothing"
    assert [place for place, _ in calls(name) if not place.startswith(allowed)] == []
