"""The stage curate_data: exact rows and counts, from the world and from local files."""

import json

import pytest

from scripts import curate_data
from scripts.lib.data import tables, world
from scripts.lib.data.schemas.conversations import CONVERSATIONS
from scripts.lib.data.schemas.preferences import PREFERENCES
from scripts.lib.data.sources import digest

ROWS = [
    {"prompt": f"question {i}", "chosen": f"good {i}", "rejected": f"bad {i}", "margin": i, "annotator": "ann"}
    for i in range(20)
]


def source(folder, name="data.jsonl", rows=ROWS):
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def settings(path, **given):
    files = digest(str(path), "*", "source")
    base = {"kind": "files", "type": "preferences", "pattern": "*", "adapter": "auto", "part": [0.0, 1.0], "size": None}
    return base | {"max_characters": None, "license": "MIT", "drop_system": False, "files": files} | given


def curate(folder, given, *paths):
    """(exit code, rows, manifest) of the stage, called as the rule calls it."""
    output = folder / "out" / "data.parquet"
    argv = ["--settings", json.dumps(given), "--source", *map(str, paths), "--output", str(output)]
    code = curate_data.main(argv)
    schema = PREFERENCES if given["type"] == "preferences" else CONVERSATIONS
    if code:
        return code, [], {}
    return code, tables.read_table(output, schema).to_dicts(), json.loads(output.with_suffix(".json").read_text())


def test_preferences_of_a_file_are_all_there_with_their_margins(tmp_path):
    path = source(tmp_path)
    code, table, manifest = curate(tmp_path, settings(path), path)
    assert code == 0
    assert {row["messages"][0]["content"]: (row["chosen"], row["rejected"], row["margin"]) for row in table} == {
        row["prompt"]: (row["chosen"], row["rejected"], float(row["margin"])) for row in ROWS
    }
    assert {(row["source"], row["annotator"], len(row["messages"])) for row in table} == {("data.jsonl", "ann", 1)}
    assert [row["prompt_id"] for row in table] == sorted(tables.prompt_id(row["messages"]) for row in table)
    assert manifest["counts"] == {"rows_in": 20, "rows_out": 20}
    assert manifest["metrics"] == {"license": "MIT", "chosen_longer": 1.0, "prompts": 20}


def test_preferences_taken_as_conversations_end_with_the_chosen_answer(tmp_path):
    path = source(tmp_path)
    _, table, _ = curate(tmp_path, settings(path, type="conversations"), path)
    assert {row["messages"][0]["content"]: row["messages"][1:] for row in table} == {
        row["prompt"]: [{"role": "assistant", "content": row["chosen"]}] for row in ROWS
    }
    assert all(row["prompt_id"] == tables.prompt_id(row["messages"][:-1]) for row in table)


def test_size_takes_the_first_rows_in_digest_order_and_counts_the_rest(tmp_path):
    path = source(tmp_path)
    _, whole, _ = curate(tmp_path, settings(path), path)
    _, table, manifest = curate(tmp_path, settings(path, size=7), path)
    assert table == whole[:7]
    assert manifest["counts"] == {"rows_in": 20, "dropped_beyond_size": 13, "rows_out": 7}


def test_every_row_is_kept_or_counted(tmp_path):
    odd = [ROWS[0], {"prompt": "q", "chosen": "a", "rejected": "a"}, {"prompt": "q"}, {"prompt": "x" * 99, **{}}]
    odd += [{"prompt": "x" * 99, "chosen": "a", "rejected": "b"}]
    path = source(tmp_path, rows=[*ROWS, *odd])
    _, table, manifest = curate(tmp_path, settings(path, part=[0.0, 0.5], max_characters=50, size=3), path)
    counts = manifest["counts"]
    assert len(table) == counts["rows_out"] == 3
    assert counts["rows_in"] == 25 == sum(counts.values()) - counts["rows_in"]
    assert (counts["dropped_identical"], counts["dropped_malformed"], counts["dropped_too_long"]) == (1, 2, 1)
    assert counts["dropped_outside_part"] > 0 < counts["dropped_beyond_size"]


def test_the_table_does_not_depend_on_the_order_of_lines(tmp_path):
    path = source(tmp_path)
    _, first, _ = curate(tmp_path, settings(path, size=9), path)
    source(tmp_path, rows=ROWS[::-1])
    _, second, _ = curate(tmp_path, settings(path, size=9), path)
    assert first == second


def test_disjoint_parts_share_no_prompt_and_together_are_everything(tmp_path):
    path = source(tmp_path)
    tables = [curate(tmp_path, settings(path, part=part), path)[1] for part in ([0.0, 0.6], [0.6, 1.0])]
    ids = [{row["prompt_id"] for row in table} for table in tables]
    assert not ids[0] & ids[1]
    assert len(ids[0]) + len(ids[1]) == 20 and all(ids)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"size": 21},
            "20 rows fit, 21 are wanted; counts: {'rows_in': 20}\nHint: the files have no more: lower `size`",
        ),
        ({"max_characters": 1}, "0 rows fit, 1 are wanted; counts: {'rows_in': 20, 'dropped_too_long': 20}\nHint: "),
        ({"max_characters": 1}, "Hint: most rows are lost as too_long (20 of 20): raise `max_characters`.\n"),
        ({"part": [0.0, 1e-9]}, "Hint: most rows are lost as outside_part (20 of 20): widen `part`.\n"),
        ({"files": ["0  data.jsonl"]}, "files differ from the planned ones: ['0  data.jsonl'"),
    ],
)
def test_what_cannot_be_done_exits_2_with_a_hint_and_leaves_no_manifest(tmp_path, capsys, given, message):
    path = source(tmp_path)
    assert curate(tmp_path, settings(path, **given), path)[0] == 2
    error = capsys.readouterr().out
    assert message in error and "\nHint: " in error
    assert not (tmp_path / "out" / "data.json").exists()


def test_a_table_of_this_project_can_be_a_source_again(tmp_path):
    path = source(tmp_path)
    _, first, _ = curate(tmp_path, settings(path), path)
    table = tmp_path / "out" / "data.parquet"
    _, second, _ = curate(tmp_path / "again", settings(table), table)
    assert second == [{**row, "source": "data.parquet"} for row in first]


def test_the_worlds_preferences_are_the_worlds_and_hide_gold(tmp_path):
    given = {"kind": "world", "type": "preferences", "split": "reward_heldout", "size": 30, "seed": 5}
    code, table, manifest = curate(tmp_path, given)
    made = world.preferences(30, 5, split="reward_heldout")
    assert code == 0
    assert [(row["messages"], row["chosen"], row["rejected"]) for row in table] == [
        ([{"role": "user", "content": row["content"]}], row["chosen"], row["rejected"]) for row in made
    ]
    assert {(row["source"], row["margin"], row["annotator"]) for row in table} == {
        ("world/reward_heldout", None, "world")
    }
    agreeing = sum(row["gold_chosen"] > row["gold_rejected"] for row in made)
    assert manifest["metrics"]["agreement_with_gold"] == agreeing / 30
    assert manifest["counts"] == {"rows_in": 30, "rows_out": 30}


def test_the_worlds_conversations_are_the_teachers(tmp_path):
    given = {"kind": "world", "type": "conversations", "split": "sft", "size": 25, "seed": 5}
    _, table, manifest = curate(tmp_path, given)
    assert [[turn["content"] for turn in row["messages"]] for row in table] == [
        [row["content"], row["completion"]] for row in world.demonstrations(25, 5)
    ]
    assert {row["source"] for row in table} == {"world/sft"}
    assert 0 < manifest["metrics"]["mean_gold"] < 1


def test_the_same_settings_give_the_same_bytes(tmp_path):
    given = {"kind": "world", "type": "preferences", "split": "reward", "size": 10, "seed": 5}
    outputs = [curate(tmp_path / name, given)[2]["output"] for name in "ab"]
    assert outputs[0] == outputs[1]


def test_the_world_has_conversations_in_one_split_only(tmp_path, capsys):
    given = {"kind": "world", "type": "conversations", "split": "reward", "size": 5, "seed": 5}
    assert curate(tmp_path, given)[0] == 2
    assert "split = 'reward'" in capsys.readouterr().out


def test_more_than_the_world_holds_exits_2(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(world, "prompts", lambda *_: (_ for _ in ()).throw(ValueError("4 of 5. Hint: ask for fewer.")))
    given = {"kind": "world", "type": "preferences", "split": "reward", "size": 5, "seed": 5}
    assert curate(tmp_path, given)[0] == 2
    assert "cannot make this data set: 4 of 5. Hint: ask for fewer." in capsys.readouterr().out
