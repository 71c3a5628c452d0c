"""Tables: declared columns, unique keys, the same bytes for the same rows."""

from importlib import import_module

import polars as pl
import pytest

from scripts.lib.data import files
from scripts.lib.data.schemas.prompts import PROMPTS
from scripts.lib.data.schemas.rewards import REWARDS
from scripts.lib.data.tables import prompt_id, read_table, write_table
from scripts.lib.stage.artifact import canonical_json
from scripts.lib.stage.digest import ROOT, text_sha256
from scripts.lib.stage.errors import InputError

KEY = ("prompt_id", "k")
ROWS = [{"prompt_id": name, "k": k, "reward": 0.5 * k, "objectives": ""} for name in ("a", "b") for k in (0, 1)]
ALL = {
    path.stem.upper(): getattr(import_module(f"scripts.lib.data.schemas.{path.stem}"), path.stem.upper())
    for path in sorted((ROOT / "scripts/lib/data/schemas").glob("[!_]*.py"))
}


def write(path, rows):
    return write_table(path, rows, REWARDS, KEY)


def test_what_is_written_is_read_back_in_order(tmp_path):
    assert write(tmp_path / "x.parquet", ROWS) == 4
    assert read_table(tmp_path / "x.parquet", REWARDS).to_dicts() == ROWS


def test_several_parts_are_read_as_one_table_in_the_order_given(tmp_path):
    write(tmp_path / "0.parquet", ROWS[:1])
    write(tmp_path / "1.parquet", ROWS[1:])
    assert read_table([tmp_path / "1.parquet", tmp_path / "0.parquet"], REWARDS).to_dicts() == ROWS[1:] + ROWS[:1]


@pytest.mark.parametrize("folder", ["run[12]", "run?", "run*", "{run1,x}", "run1=a"])
def test_a_path_is_no_pattern(tmp_path, folder):
    """`run[12]/t.parquet` matches run1/t.parquet, and a digest of the one would vouch for the rows of the other."""
    for name, reward in (("run1", 1.0), (folder, 2.0)):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "t.parquet", [ROWS[0] | {"reward": reward}])
    assert read_table(tmp_path / folder / "t.parquet", REWARDS)["reward"].to_list() == [2.0]
    assert [row["reward"] for row in files.rows(tmp_path / folder / "t.parquet")] == [2.0]


def test_a_pattern_reads_nothing(tmp_path):
    write(tmp_path / "a.parquet", ROWS)
    with pytest.raises(InputError, match=r"\*\.parquet: No such file"):
        read_table(tmp_path / "*.parquet", REWARDS)


def test_no_parts_and_no_rows_are_empty_tables_with_the_schemas_columns(tmp_path):
    assert write(tmp_path / "x.parquet", []) == 0
    for table in (read_table([], REWARDS), read_table(tmp_path / "x.parquet", REWARDS)):
        assert table.schema == pl.Schema(REWARDS)
        assert table.height == 0


@pytest.mark.parametrize("name", sorted(ALL))
def test_every_schema_can_be_written_and_read(tmp_path, name):
    write_table(tmp_path / "x.parquet", [], ALL[name], tuple(ALL[name])[:1])
    assert read_table(tmp_path / "x.parquet", ALL[name]).columns == list(ALL[name])


def test_messages_keep_their_turns(tmp_path):
    messages = [{"role": "user", "content": "ä\n"}, {"role": "assistant", "content": ""}]
    row = {"prompt_id": "p", "source": "s", "messages": messages, "metadata": ""}
    write_table(tmp_path / "x.parquet", [row], PROMPTS, ("prompt_id",))
    assert read_table(tmp_path / "x.parquet", PROMPTS).to_dicts() == [row]


def test_the_same_rows_give_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / name, ROWS)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    write(tmp_path / "c", pl.DataFrame(ROWS, schema=REWARDS))
    assert (tmp_path / "c").read_bytes() == (tmp_path / "a").read_bytes()


def test_a_key_that_stands_twice_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(InputError) as caught:
        write(tmp_path / "x.parquet", [*ROWS, {**ROWS[3], "reward": 9.0}])
    assert str(caught.value) == (
        f"{tmp_path}/x.parquet: ('prompt_id', 'k') = ('b', 1) appears more than once\n"
        "Hint: each ('prompt_id', 'k') must be unique."
    )
    assert not (tmp_path / "x.parquet").exists()


def test_a_value_of_the_wrong_kind_is_refused_naming_the_file(tmp_path):
    with pytest.raises(InputError, match=r"x\.parquet: rows do not fit the schema"):
        write(tmp_path / "x.parquet", [{**ROWS[0], "k": "first"}])


def test_a_row_with_a_fraction_where_a_whole_number_stands_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"x\.parquet"):
        write(tmp_path / "x.parquet", [{**ROWS[0], "k": 0.5}])


def test_a_row_that_lacks_a_column_is_refused_naming_it(tmp_path):
    with pytest.raises(InputError, match="objectives"):
        write(tmp_path / "x.parquet", [{key: ROWS[0][key] for key in ("prompt_id", "k", "reward")}])


def test_a_row_with_a_column_too_many_is_refused_naming_it(tmp_path):
    with pytest.raises(InputError, match="rewrad"):
        write(tmp_path / "x.parquet", [{**ROWS[0], "rewrad": 1.0}])


def test_a_frame_that_lacks_a_column_is_refused_naming_the_file(tmp_path):
    with pytest.raises(InputError, match=r"x\.parquet"):
        write(tmp_path / "x.parquet", pl.DataFrame({"prompt_id": ["a"], "k": [0]}))


def test_a_frame_with_its_columns_in_another_order_never_mixes_them_up(tmp_path):
    frame = pl.DataFrame(ROWS, schema=REWARDS).select("objectives", "k", "reward", "prompt_id")
    try:
        write_table(tmp_path / "x.parquet", frame, REWARDS, ("k", "prompt_id", "objectives"))
    except InputError as error:
        assert "fit the schema" in str(error)
        return
    assert read_table(tmp_path / "x.parquet", REWARDS).to_dicts() == ROWS


@pytest.mark.parametrize(
    "table",
    [
        pytest.param(pl.DataFrame(ROWS, schema=REWARDS).drop("objectives"), id="lacking"),
        pytest.param(pl.DataFrame(ROWS, schema=REWARDS).with_columns(x=1), id="too many"),
        pytest.param(pl.DataFrame(ROWS, schema=REWARDS).with_columns(pl.col("k").cast(pl.Int64)), id="another type"),
        pytest.param(pl.DataFrame(ROWS, schema=REWARDS).rename({"reward": "score"}), id="another name"),
    ],
)
def test_a_table_with_other_columns_is_refused_naming_the_file(tmp_path, table):
    table.write_parquet(tmp_path / "x.parquet")
    with pytest.raises(InputError, match=r"x\.parquet: columns are (?s:.*)\nHint: "):
        read_table(tmp_path / "x.parquet", REWARDS)


@pytest.mark.parametrize("kept", [0, 3, 100, 0.5, -1])
def test_a_truncated_table_is_refused_naming_the_file_with_a_hint(tmp_path, kept):
    path = tmp_path / "x.parquet"
    write(path, ROWS)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept) if isinstance(kept, float) else kept])
    with pytest.raises(InputError, match=r"x\.parquet(?s:.*)\nHint: delete it"):
        read_table(path, REWARDS)


def test_a_missing_table_is_refused_naming_the_file_with_a_hint(tmp_path):
    with pytest.raises(InputError, match=r"x\.parquet(?s:.*)\nHint: "):
        read_table(tmp_path / "x.parquet", REWARDS)


def test_a_prompt_id_is_the_start_of_the_digest_of_the_canonical_messages():
    messages = [{"role": "user", "content": "ä"}]
    assert prompt_id(messages) == text_sha256(canonical_json(messages))[:16]
    assert prompt_id(messages) == text_sha256('[{"content": "ä", "role": "user"}]')[:16]


def test_a_prompt_id_depends_on_roles_and_contents_only():
    one = prompt_id([{"role": "user", "content": "a"}])
    assert prompt_id([{"content": "a", "role": "user"}]) == one
    assert prompt_id([{"role": "user", "content": "a", "name": "x"}]) == one
    assert prompt_id([{"role": "system", "content": "a"}]) != one
    assert prompt_id([{"role": "user", "content": "a "}]) != one
    assert prompt_id([{"role": "user", "content": "a"}] * 2) != one
