"""Training rows: made once, by all processes, in files that a killed step finds again; and packed into blocks."""

from itertools import chain
from pathlib import Path

import pytest

from scripts.lib.models import rows, training
from scripts.lib.stage import ranks
from scripts.lib.stage.contract import Job


def job(folder):
    return Job("train_sft", {}, {}, {}, folder / "model", folder / "work")


def row(number):
    return {"ids": list(range(number % 4)), "logps": -0.1 * number}


def fits(row):
    return len(row["ids"]) < 3


def never(items):
    raise AssertionError("rows are made again")


def test_rows_become_columns_of_int32_on_disk(tmp_path):
    numbers = range(2 * rows.ROWS_AT_ONCE + 5)
    found, dropped = rows.dataset(job(tmp_path), numbers, lambda some: map(row, some), fits)
    wanted = [number for number in numbers if number % 4 < 3]
    assert (len(found), dropped) == (len(wanted), len(numbers) - len(wanted))
    assert found["ids"][:] == [list(range(number % 4)) for number in wanted]
    assert found["logps"][:] == [-0.1 * number for number in wanted]
    assert (found.features["ids"].feature.dtype, found.features["logps"].dtype) == ("int32", "float64")
    assert [Path(file["filename"]).name for file in found.cache_files] == ["rows-0-of-1.arrow"]


def test_rows_that_an_interrupted_step_has_made_are_not_made_again(tmp_path):
    made = rows.dataset(job(tmp_path), range(9), lambda some: map(row, some), fits)
    found = rows.dataset(job(tmp_path), range(9), never, fits)
    assert (found[0].to_list(), found[1]) == (made[0].to_list(), made[1])


def test_a_kill_while_rows_are_made_leaves_none_of_them(tmp_path):
    def killed(some):
        yield from map(row, some[:3])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rows.dataset(job(tmp_path), range(9), killed, fits)
    assert list((tmp_path / "work").iterdir()) == []


@pytest.mark.parametrize("fitting", [fits, lambda row: False])
def test_no_rows_are_an_empty_table(tmp_path, fitting):
    items = range(4) if fitting is not fits else range(0)
    found, dropped = rows.dataset(job(tmp_path), items, lambda some: map(row, some), fitting)
    assert (len(found), dropped) == (0, len(items))


def as_process(monkeypatch, number, count):
    """This process plays one of several; those before it have come to each meeting already."""
    monkeypatch.setattr(ranks, "number", lambda: number)
    monkeypatch.setattr(ranks, "count", lambda: count)
    monkeypatch.setattr(ranks, "wait", lambda: None)


@pytest.mark.parametrize("count", [2, 3, 12])
def test_processes_share_the_rows_and_all_see_all_of_them_in_order(tmp_path, monkeypatch, count):
    taken = []

    def rows_of(some):
        taken.append(list(some))
        return map(row, some)

    wanted = rows.dataset(job(tmp_path / "one"), range(10), lambda some: map(row, some), fits)[0].to_list()
    for number in range(count - 1):
        as_process(monkeypatch, number, count)
        with pytest.raises(FileNotFoundError):  # a later one's file: it has not run yet
            rows.dataset(job(tmp_path), range(10), rows_of, fits)
    as_process(monkeypatch, count - 1, count)
    found, dropped = rows.dataset(job(tmp_path), range(10), rows_of, fits)
    assert (found.to_list(), dropped) == (wanted, 2)
    assert list(chain(*taken)) == list(range(10)) and max(map(len, taken)) <= -(-10 // count)
    as_process(monkeypatch, 0, count)
    assert rows.dataset(job(tmp_path), range(10), never, fits)[0].to_list() == wanted


def test_blocks_hold_whole_rows_once_each_whoever_makes_them(tmp_path, monkeypatch):
    def tokens(numbers):
        for number in numbers:
            length = 1 + 7 * number % 13
            yield {"input_ids": [number] * length, "labels": [-100] * (length - 1) + [number]}

    found, _ = rows.dataset(job(tmp_path), range(40), tokens, lambda row: True)
    training.disable_progress_bars()
    blocks = rows.packed(job(tmp_path), found, 16)
    assert max(map(len, blocks["input_ids"])) <= 16 and len(blocks) < 40
    seen = []
    for block in blocks:
        at = 0
        for length in block["seq_lengths"]:
            ids, labels = block["input_ids"][at : at + length], block["labels"][at : at + length]
            assert set(ids) == {ids[0]} and labels == [-100] * (length - 1) + [ids[0]]
            seen.append((ids[0], length))
            at += length
        assert at == len(block["input_ids"])
    assert sorted(seen) == [(number, 1 + 7 * number % 13) for number in range(40)]
    assert {path.name for path in (tmp_path / "work").iterdir()} == {"rows-0-of-1.arrow", "blocks.arrow"}
    # Neither another process packs again nor a step that goes on after a kill.
    monkeypatch.setattr(rows, "pack_dataset", never)
    assert rows.packed(job(tmp_path), found, 16).to_list() == blocks.to_list()
    as_process(monkeypatch, 1, 2)
    assert rows.packed(job(tmp_path), found, 16).to_list() == blocks.to_list()
