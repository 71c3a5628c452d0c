"""Clocks that differ are told, and cost no finished step its outputs."""

import json
import os
import time

import pytest

from scripts import select_pairs
from scripts.lib.stage import clocks
from tests.conftest import copy_checkout, run
from tests.unit.test_select_pairs import SETTINGS, preference

DAYS = 2 * 86400.0


@pytest.mark.parametrize(
    ("stamped", "expected"),
    [(100.0, 0), (100.4, 0), (101.0, 0), (99.0, -1), (103.5, 2.5), (100 + DAYS, DAYS - 1), (100 - DAYS, -DAYS)],
)
def test_a_file_stamped_while_it_was_written_shows_no_difference(stamped, expected):
    assert clocks.difference(100.0, stamped, 101.0) == expected


@pytest.fixture
def made(tmp_path):
    """made(name, seconds from now, folder) → an input with its digests and, for a folder, Snakemake's stamp."""

    def make(name, offset, folder=False):
        path = tmp_path / name
        files = [path]
        if folder:
            path.mkdir()
            files = [path / clocks.FOLDER_STAMP, tmp_path / f"{name}.sha256"]
        for file in files:
            file.touch()
            os.utime(file, (time.time() + offset,) * 2)
        return path

    return make


def test_nothing_is_said_or_changed_where_clocks_agree(tmp_path, made):
    inputs = [made("a.parquet", -DAYS), made("b.parquet", 0), made("model", -3, folder=True), tmp_path / "missing"]
    before = clocks.stamps(inputs)
    assert len(before) == 4
    assert clocks.warnings(tmp_path, inputs) == []
    assert clocks.bring_back(tmp_path, inputs) == []
    assert clocks.stamps(inputs) == before
    assert not list(tmp_path.glob(".clock*"))
    # Before a first build there is no folder either.
    assert clocks.bring_back(tmp_path / "results", [tmp_path / "results" / "missing"]) == []


def test_inputs_of_the_future_are_told_and_brought_back(tmp_path, made):
    inputs = [made("a.parquet", DAYS), made("model", DAYS / 2, folder=True), made("old.parquet", -DAYS)]
    old = (tmp_path / "old.parquet").stat().st_mtime
    (line,) = clocks.warnings(tmp_path, inputs)
    assert line.startswith(f"{tmp_path}/a.parquet and 2 more inputs: made 17280")
    assert sorted(clocks.bring_back(tmp_path, inputs)) == [
        *(tmp_path / "a.parquet", tmp_path / "model" / clocks.FOLDER_STAMP, tmp_path / "model.sha256")
    ]
    # What is made now is not older than any of them: Snakemake's check.
    (tmp_path / "output").touch()
    assert max(clocks.stamps(inputs).values()) <= (tmp_path / "output").stat().st_mtime
    assert (tmp_path / "old.parquet").stat().st_mtime == old


def test_a_node_whose_clock_is_off_is_told(tmp_path, monkeypatch):
    real = time.time
    for offset, words in ((DAYS, "s behind that of "), (-DAYS, "s ahead of that of ")):
        monkeypatch.setattr(clocks.time, "time", lambda offset=offset: real() + offset)
        (line,) = clocks.warnings(tmp_path, [])
        assert line.startswith("the file system's clock is 172800 s ") and words in line
    monkeypatch.setattr(clocks.time, "time", lambda: real() + 1)
    assert clocks.warnings(tmp_path, []) == []


def test_a_step_warns_its_log_and_the_person_and_saves_what_it_made(tmp_path, write, run_stage, capsys):
    table = write(tmp_path / "preferences.parquet", [preference(1)], "PREFERENCES")
    os.utime(table, (time.time() + DAYS,) * 2)
    assert run_stage(select_pairs, SETTINGS, tmp_path / "pairs.parquet", dataset=table)[0] == 0
    shown = capsys.readouterr()
    for stream in (shown.out, shown.err):
        assert f"select_pairs: warning: {table}: made 172" in stream
        assert "\nHint: set the clocks of all machines by one source, for instance chrony" in stream
    assert f"given the present time, or Snakemake would delete the output: {table}\n" in shown.err
    assert table.stat().st_mtime <= time.time()


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A checkout with a small table of preferences, from a first build that had no results folder."""
    folder = copy_checkout(tmp_path_factory.mktemp("clocks") / "ouroboros")
    (folder / "small.yaml").write_text(json.dumps({"datasets": {"annotations": {"size": 64}}}))
    run(folder, "snakemake", "results/tiny/data/annotations/pairs/as_given.parquet", "--configfile", "small.yaml")
    return folder


def test_snakemake_keeps_what_was_made_from_inputs_of_the_future(small):
    table = small / "results" / "tiny" / "data" / "annotations.parquet"
    os.utime(table, (time.time() + DAYS,) * 2)
    pairs = "results/tiny/data/annotations/pairs/as_given.parquet"
    (small / pairs).unlink(missing_ok=True)
    done = run(small, "snakemake", pairs, "--configfile", "small.yaml")
    assert (small / pairs).exists()
    assert "made in the future by the clock of this machine" in done.stdout + done.stderr
    again = run(small, "snakemake", "-n", pairs, "--configfile", "small.yaml")
    assert "Nothing to be done" in again.stdout + again.stderr
