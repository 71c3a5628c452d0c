"""The stage make_prompts: exact, disjoint slices of prompts, from the world and from local files."""

import json

import pytest

from scripts import make_prompts
from scripts.lib.data import tables, world
from scripts.lib.data.schemas.prompts import PROMPTS
from scripts.lib.data.sources import digest
from scripts.lib.planning.checks import WORLD_PROMPTS


def make(folder, given, *paths):
    """(exit code, rows, manifest) of the stage, called as the rule calls it."""
    output = folder / f"pool-{given['number']}.parquet"
    argv = ["--settings", json.dumps(given), "--source", *map(str, paths), "--output", str(output)]
    code = make_prompts.main(argv)
    if code:
        return code, [], {}
    manifest = json.loads(output.with_suffix(".json").read_text())
    return code, tables.read_table(output, PROMPTS).to_dicts(), manifest


def from_files(path, **given):
    base = {"kind": "files", "pattern": "*", "adapter": "auto", "part": [0.0, 1.0], "size": 8}
    base |= {"max_characters": None, "license": "MIT"}
    return base | {"files": digest(str(path), "*", "source"), "number": 1} | given


@pytest.fixture
def pool(tmp_path):
    """30 rows with 25 different prompts, in the shapes of data sets."""
    rows = [{"prompt": f"p{i}"} for i in range(10)]
    rows += [{"messages": [{"role": "user", "content": f"p{i}"}]} for i in range(10, 20)]
    rows += [{"chosen": f"\n\nHuman: p{i}\n\nAssistant: a", "rejected": ""} for i in range(15, 25)]
    path = tmp_path / "pool.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_slices_are_exact_disjoint_and_in_digest_order(tmp_path, pool):
    slices = []
    for number in (1, 2, 3):
        code, table, manifest = make(tmp_path, from_files(pool, number=number), pool)
        assert code == 0
        assert manifest["counts"] == {
            "rows_in": 30,
            "dropped_duplicate": 5,
            "dropped_other_slice": 17,
            "rows_out": 8,
        }
        slices += table
    ids = [row["prompt_id"] for row in slices]
    assert ids == sorted(set(ids)) and len(ids) == 24
    assert all(row["prompt_id"] == tables.prompt_id(row["messages"]) for row in slices)
    assert {row["messages"][0]["content"] for row in slices} < {f"p{i}" for i in range(25)}
    assert {(row["metadata"], row["source"]) for row in slices} == {("", "pool.jsonl")}


def test_a_shortfall_exits_2_and_says_how_many_there_are(tmp_path, pool, capsys):
    assert make(tmp_path, from_files(pool, number=4), pool)[0] == 2
    error = capsys.readouterr().out
    assert "25 rows fit, 32 are wanted; counts: {'rows_in': 30, 'dropped_duplicate': 5}\nHint: " in error


@pytest.mark.parametrize(("split", "number"), [("iteration", 1), ("iteration", 3), ("validation", 1)])
def test_the_worlds_prompts_carry_their_requests(tmp_path, split, number):
    given = {"kind": "world", "split": split, "size": 20, "seed": 4, "number": number}
    code, table, manifest = make(tmp_path, given)
    made = world.prompts(split, 60, 4)[20 * (number - 1) : 20 * number]
    assert code == 0
    assert [(row["messages"], json.loads(row["metadata"])) for row in table] == [
        ([{"role": "user", "content": row["content"]}], row["requests"]) for row in made
    ]
    assert {row["source"] for row in table} == {f"world/{split}"}
    assert manifest["counts"] == {"rows_in": 20, "rows_out": 20}


def test_iterations_of_the_world_share_no_prompt(tmp_path):
    given = {"kind": "world", "split": "iteration", "size": 40, "seed": 4}
    first, second = (make(tmp_path, given | {"number": number})[1] for number in (1, 2))
    assert len({row["prompt_id"] for row in first + second}) == 80


def test_a_set_as_large_as_three_iterations_together_holds_exactly_their_prompts(tmp_path):
    given = {"kind": "world", "split": "iteration", "seed": 4}
    parts = [make(tmp_path, given | {"size": 40, "number": number})[1] for number in (1, 2, 3)]
    whole = make(tmp_path, given | {"size": 120, "number": 1})[1]
    assert [row["prompt_id"] for row in whole] == [row["prompt_id"] for part in parts for row in part]


def test_the_world_has_as_many_prompts_for_iterations_as_the_check_of_a_config_allows():
    assert len(world.prompts("iteration", WORLD_PROMPTS, 1)) == WORLD_PROMPTS


def test_a_split_of_one_set_has_no_second(tmp_path, capsys):
    given = {"kind": "world", "split": "evaluation", "size": 5, "seed": 4, "number": 2}
    assert make(tmp_path, given)[0] == 2
    assert "number = 2: the world has one evaluation set\nHint: ask for number 1." in capsys.readouterr().out


def test_more_prompts_than_the_world_has_exit_2_with_a_hint(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(world, "NAMES", ["Ada"])
    monkeypatch.setattr(world, "SURNAMES", ["Abel"])
    given = {"kind": "world", "split": "iteration", "size": 50, "seed": 4}
    assert make(tmp_path, given | {"number": 1})[0] == 0
    assert make(tmp_path, given | {"number": 2})[0] == 2
    said = capsys.readouterr().out
    assert "the world cannot make these prompts: split 'iteration' supplied only " in said
    assert " of 100 prompts. Hint: ask for fewer prompts" in said
