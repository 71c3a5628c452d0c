"""Adapters as a family: one file a member, and only the member that a data set chooses counts in its digest."""

import shutil
import sys

import pytest

from scripts.lib.data import adapters
from scripts.lib.data.adapters import auto, general, nectar
from scripts.lib.data.curation import parse
from scripts.lib.kinds import families
from scripts.lib.planning.config import resolve
from scripts.lib.planning.plan import Plan
from scripts.lib.stage import digest
from tests.unit.test_adapters import CONVERSATIONS, PREFERENCES, PROMPTS, ranks
from tests.unit.test_config import ASKS, CHOICES, complaint, given
from tests.unit.test_curate_data import curate, settings, source

KINDS = ("prompts", "conversations", "preferences")
STAGES = ("curate_data", "make_prompts")
ALPACA = '''"""Alpaca's rows: {instruction, output}."""

from scripts.lib.data.adapters import general
from scripts.lib.data.examples import Example, Unfit


def parse(row: object, kind: str) -> Example:
    """One row as an example of `kind`."""
    if not isinstance(row, dict):
        raise Unfit("malformed")
    return general.parse({"prompt": row.get("instruction"), "response": row.get("output")}, kind)
'''


def clear():
    for cached in (digest._module, digest._code_digest, digest.pins):
        cached.cache_clear()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The family's folder in a copy of this repository's scripts."""
    shutil.copytree(digest.ROOT / "scripts", tmp_path / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "envs").mkdir()
    shutil.copy(digest.ROOT / digest.PINS, tmp_path / digest.PINS)
    monkeypatch.setattr(digest, "ROOT", tmp_path)
    monkeypatch.setattr(families, "LIB", tmp_path / "scripts" / "lib")
    clear()
    yield families.LIB / families.FOLDERS["adapters"]
    clear()


def digests(*members):
    """(stage, adapter) → the digest of the stage's code for a data set or prompt set that is read so."""
    clear()
    return {(stage, name): digest.code_digest(stage, {"adapter": name}) for stage in STAGES for name in members}


def test_a_new_adapter_is_a_new_file_and_changes_no_digest_of_another_ones_data(folder):
    before = digests("auto", "general", "nectar")
    (folder / "alpaca.py").write_text(ALPACA)
    assert families.names("adapters") == ["alpaca", "auto", "general", "nectar"]
    assert digests("auto", "general", "nectar") == before
    assert all("adapters.alpaca:" in value for value in digests("alpaca").values())


def test_a_new_adapter_is_used_by_its_name(folder, tmp_path, monkeypatch):
    (folder / "alpaca.py").write_text(ALPACA)
    monkeypatch.setattr(adapters, "__path__", [str(folder)])  # where Python looks for the members
    path = source(tmp_path, rows=[{"instruction": "q", "output": "a"}, {"instruction": "q"}])
    try:
        code, table, manifest = curate(tmp_path, settings(path, type="conversations", adapter="alpaca"), path)
    finally:
        sys.modules.pop("scripts.lib.data.adapters.alpaca", None)
    assert code == 0
    assert [[turn["content"] for turn in row["messages"]] for row in table] == [["q", "a"]]
    assert manifest["counts"] == {"rows_in": 2, "dropped_malformed": 1, "rows_out": 1}
    assert "adapters.alpaca:" in manifest["code"]


def test_a_changed_adapter_changes_the_digests_of_the_data_that_it_reads_alone(folder):
    names = ("auto", "general", "nectar")
    before = digests(*names)
    # Who reads through whom: auto through both others, nectar through general.
    for changed, readers in {"nectar": {"auto", "nectar"}, "general": set(names), "auto": {"auto"}}.items():
        path = folder / f"{changed}.py"
        kept = path.read_text()
        path.write_text(kept + "\nCHANGED = 1\n")
        now = digests(*names)
        assert {key for key in before if now[key] != before[key]} == {(s, n) for s in STAGES for n in readers}
        path.write_text(kept)


def test_data_of_the_world_count_no_adapter(folder):
    clear()
    assert "adapters." not in digest.code_digest("curate_data", {"kind": "world"})


def test_a_member_that_is_not_there_is_named_with_those_that_are():
    with pytest.raises(KeyError, match="adapters has no member 'nectr'; it has auto, general, nectar"):
        families.load("adapters", "nectr")


def test_auto_reads_every_shape_as_its_own_adapter_does():
    rows = [*PREFERENCES, *CONVERSATIONS, *(row for row in PROMPTS if "answers" not in row), {}, None, {"chosen": "a"}]
    assert [parse(row, kind, auto) for row in rows for kind in KINDS] == [
        parse(row, kind, general) for row in rows for kind in KINDS
    ]
    ranked = [ranks(("good", 1), ("bad", 7), ("fine", 3)), ranks(("a", 1), ("b", 1)), ranks(("a", None)), ranks()]
    assert [parse(row, kind, auto) for row in ranked for kind in KINDS] == [
        parse(row, kind, nectar) for row in ranked for kind in KINDS
    ]
    assert parse(ranked[0], "preferences", general) == "malformed" != parse(ranked[0], "preferences", auto)


def test_the_adapter_decides_how_files_are_read_and_not_which_are_fetched():
    files = {"kind": "files", "path": "tests/data/hh_rlhf"}
    changes = {
        "datasets__choices": CHOICES,
        "datasets__local": files | {"type": "preferences", "adapter": "general"},
        "prompts__asks": ASKS | {"adapter": "nectar"},
        "prompts__local": files | {"size": 3},
    }
    plan = Plan(resolve(given(**changes)))
    read = [plan.settings("curate_data", {"dataset": name}).adapter for name in ("choices", "local")]
    read += [plan.settings("make_prompts", {"prompts": name}).adapter for name in ("asks-1", "local-1")]
    assert read == ["auto", "general", "nectar", "auto"]
    fetched = plan.settings("fetch_data", {"block": "prompts", "source": "asks-1"})
    assert "adapter" not in fetched.model_dump()
    assert "adapter" not in plan.settings("curate_data", {"dataset": "talks"}).model_dump()  # of the world


@pytest.mark.parametrize(
    ("name", "hint"), [("nectr", "did you mean nectar?"), ("zzz", "known are auto, general, nectar.")]
)
def test_an_adapter_that_is_not_there_is_named_before_anything_runs(name, hint):
    line = complaint(given(datasets__choices={**CHOICES, "adapter": name}))
    assert line == f"datasets.choices.adapter = {name!r}: must be one of auto, general, nectar. Hint: {hint}"
    assert complaint(given(prompts__asks={**ASKS, "adapter": name})).startswith("prompts.asks.adapter = ")
