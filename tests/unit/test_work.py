"""A step's work folder: one holder at a time, a lock that dies with it, state that belongs to one fingerprint."""

import errno
import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from scripts.lib.stage import artifact, contract, work
from scripts.lib.stage.digest import ROOT
from scripts.lib.stage.errors import InputError
from tests.unit.test_contract import copy, execute, refused

HOLDER = """
import sys, time
from pathlib import Path
from scripts.lib.stage import work
with work.locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def orphan(tmp_path):
    """Another process that holds a folder's lock: orphan(folder) → process."""
    started = []

    def start(folder):
        command = [sys.executable, "-c", HOLDER, str(folder)]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_a_step_waits_for_an_orphan_and_goes_on_when_it_dies(tmp_path, orphan, capsys):
    holder = orphan(tmp_path / "work")
    entered = []

    def wait():
        with work.locked(tmp_path / "work") as waited:
            entered.append(waited)

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.3)
    assert entered == []
    holder.kill()  # SIGKILL: nothing in the holder can release anything
    thread.join(timeout=30)
    assert entered == [1]
    assert f"process {holder.pid} on" in capsys.readouterr().err


def test_those_who_wait_enter_one_after_the_other_though_each_removes_the_folder(tmp_path):
    inside, most, lock = [0], [0], threading.Lock()

    def step():
        with work.locked(tmp_path / "work"):
            with lock:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
            time.sleep(0.02)
            with lock:
                inside[0] -= 1

    threads = [threading.Thread(target=step) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert (most, inside) == ([1], [0])
    assert not (tmp_path / "work").exists()


def test_what_an_orphan_has_finished_meanwhile_is_taken_and_not_made_again(place, monkeypatch, capsys):
    assert execute() == 0
    real = work.locked

    def waited(folder):
        with real(folder) as _:
            yield 1

    monkeypatch.setattr(work, "locked", work.contextmanager(waited))
    assert execute(refused) == 0
    assert "made by the process that was waited for" in capsys.readouterr().out
    # Of other settings, or damaged: it is made.
    assert execute(settings='{"seed": 2}') == 0
    assert json.loads(Path("out/copied.json").read_text())["settings"]["seed"] == 2
    Path("out/copied.parquet").write_text("damaged")
    assert execute(settings='{"seed": 2}') == 0
    assert Path("out/copied.parquet").read_text() == "table"


def half(job):
    """Finish something, then die as if killed."""
    job.work.joinpath("finished").write_text("rows")
    raise KeyboardInterrupt


def look(seen):
    def run(job):
        seen.append(job.work.joinpath("finished").exists())
        copy(job)

    return run


def test_a_killed_steps_work_is_found_by_the_same_step_and_gone_when_it_is_done(place):
    seen = []
    with pytest.raises(KeyboardInterrupt):
        execute(half)
    assert Path("out/work/copied/finished").exists()
    assert execute(look(seen)) == 0
    assert seen == [True]
    assert not Path("out/work").exists()


@pytest.mark.parametrize("differing", ["settings", "inputs", "code"])
def test_work_of_other_settings_inputs_or_code_is_thrown_away_with_a_message(place, capsys, differing, monkeypatch):
    seen = []
    with pytest.raises(KeyboardInterrupt):
        execute(half)
    if differing == "inputs":
        Path("table.parquet").write_text("other")
    if differing == "code":
        monkeypatch.setattr(contract, "code_digest", lambda name, settings: "copying:0")
    assert execute(look(seen), **({"settings": '{"seed": 2}'} if differing == "settings" else {})) == 0
    assert seen == [False]
    assert f"left by a step with other {differing}; starting clean" in capsys.readouterr().err


def test_a_broken_fingerprint_is_no_fingerprint(place):
    seen = []
    with pytest.raises(KeyboardInterrupt):
        execute(half)
    Path("out/work/copied/fingerprint.json").write_text('{"stage": ')
    assert execute(look(seen)) == 0
    assert seen == [False]


def test_a_step_that_fails_before_it_finishes_anything_leaves_no_folder(place):
    assert execute(refused) == 1
    assert not Path("out/work").exists()


def test_a_table_that_is_not_what_its_manifest_says_is_refused(place, capsys):
    assert execute(output="out/first.parquet") == 0
    assert execute(table="out/first.parquet", output="out/second.parquet") == 0
    Path("out/first.parquet").write_text("damaged")
    assert execute(refused, table="out/first.parquet", output="out/second.parquet") == 2
    assert "out/first.parquet: sha256 is" in capsys.readouterr().out
    # A source from outside may have any file beside it.
    artifact.write_json(place / "table.json", {"output": "something else"})
    assert execute() == 0


def test_what_a_killed_process_left_half_written_is_swept_away_and_a_neighbours_is_not(place):
    Path("out").mkdir()
    Path("out/.copied.parquet.1234.part").write_text("ha")
    Path("out/.copied.json.1234.part").write_text("{")
    Path("out/.copied.1234.part").mkdir()
    Path("out/.copied_too.parquet.1234.part").write_text("another's")
    assert execute() == 0
    assert [path.name for path in Path("out").glob(".*")] == [".copied_too.parquet.1234.part"]


def test_a_work_folder_is_borrowed_only_while_nobody_holds_it_and_what_is_put_there_stays(tmp_path):
    folder = tmp_path / "work" / "x"
    with work.borrowed(folder) as held, work.borrowed(folder) as again:
        assert (held, again) == (True, False)
        (folder / "rows").write_text("1")
    with work.locked(folder) as waited:
        assert waited == 0
        assert (folder / "rows").read_text() == "1"
        with work.borrowed(folder) as while_made:
            assert not while_made
    assert not folder.exists()


def test_a_lock_file_that_cannot_go_leaves_the_folder(tmp_path, monkeypatch):
    def busy(path):
        if path.name == "x":
            raise OSError(39, "Directory not empty")
        real(path)

    real = Path.rmdir
    monkeypatch.setattr(Path, "rmdir", busy)
    with work.locked(tmp_path / "work" / "x"):
        (tmp_path / "work" / "x" / "rows").write_text("1")
    assert list((tmp_path / "work" / "x").iterdir()) == []


@pytest.fixture
def cleared(tmp_path, monkeypatch):
    """A neighbour clears the empty folder `work` just after it was made or found; gives how often it still will."""
    real, left = os.mkdir, [0]

    def mkdir(path, *given):
        try:
            real(path, *given)
        finally:
            if left[0] and Path(path) == tmp_path / "work":
                left[0] -= 1
                Path(path).rmdir()

    monkeypatch.setattr(os, "mkdir", mkdir)
    return left


def test_folders_that_a_neighbour_clears_meanwhile_are_made_again(tmp_path, cleared):
    cleared[0] = 2
    with work.locked(tmp_path / "work" / "x"):
        assert cleared == [0]
        assert (tmp_path / "work" / "x" / "lock").exists()
    (tmp_path / "work").mkdir()
    cleared[0] = 1
    with work.locked(tmp_path / "work"):
        assert cleared == [0]
    cleared[0] = 1
    with work.borrowed(tmp_path / "work" / "x") as held:
        assert not held
    with work.borrowed(tmp_path / "work" / "x") as held:
        assert held


def test_who_is_waited_for_is_known_though_the_lock_file_has_just_been_removed(tmp_path, monkeypatch):
    holder = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(holder, fcntl.LOCK_EX)
    work._sign(holder)
    waiting, said = os.open(tmp_path / "lock", os.O_RDWR), []
    (tmp_path / "lock").unlink()
    monkeypatch.setattr(work, "progress", lambda text: (said.append(text), os.close(holder)))
    assert work._acquire(waiting, tmp_path) == 1
    os.close(waiting)
    assert said[0].startswith(f"process {os.getpid()} on ")


@pytest.mark.parametrize("wrong", ["file", "link to nowhere"])
def test_what_is_no_folder_where_a_work_folder_should_be_is_an_error_and_not_waited_for(tmp_path, wrong):
    if wrong == "file":
        (tmp_path / "work").write_text("")
    else:
        (tmp_path / "work").symlink_to(tmp_path / "nowhere")
    for folder in (tmp_path / "work", tmp_path / "work" / "x"):
        with pytest.raises((FileExistsError, NotADirectoryError)), work.locked(folder):
            pass


def test_a_file_system_without_locks_is_refused_and_lends_nothing(tmp_path, monkeypatch):
    def none(descriptor, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(work.fcntl, "flock", none)
    with pytest.raises(InputError, match=r"no flock \(No locks available\)") as caught, work.locked(tmp_path / "work"):
        pass
    assert f"{tmp_path / 'work'}: " in str(caught.value)
    assert "\nHint: mount it with flock" in str(caught.value)
    with work.borrowed(tmp_path / "work") as held:
        assert not held
