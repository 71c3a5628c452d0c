"""Once an artifact and its manifest stand, nothing fails the step: not git, not the log, not a terminal."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.lib.planning import config as configuration
from scripts.lib.planning.plan import Plan
from scripts.lib.stage import artifact, work
from scripts.lib.stage.digest import ROOT
from scripts.lib.stage.progress import say
from tests.unit.test_contract import execute


@pytest.fixture(scope="module")
def command():
    """The words of a small real step, without its output."""
    plan = Plan(configuration.load())
    settings = plan.settings_json("make_prompts", {"prompts": "heldout-1"})
    return [sys.executable, "-m", "scripts.make_prompts", "--settings", settings]


@pytest.mark.parametrize(
    ("environment", "streams"),
    [
        ({"PATH": "/nowhere"}, {}),  # no git on the node
        ({"GIT_DIR": "/nowhere"}, {}),
        ({"PYTHONIOENCODING": "ascii"}, {}),
        ({"PYTHONIOENCODING": "ascii:strict", "LC_ALL": "C", "PYTHONUTF8": "0"}, {}),
        ({}, {"stdout": "/dev/full"}),
        ({}, {"stderr": "/dev/full"}),
        ({}, {"stdout": "/dev/full", "stderr": "/dev/full"}),
    ],
    ids=str,
)
def test_a_step_that_has_made_its_artifact_succeeds(command, tmp_path, environment, streams):
    opened = {name: Path(path).open("w") for name, path in streams.items()}
    done = subprocess.run(
        [*command, "--output", str(tmp_path / "out/prompts.parquet")],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        **({"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | opened),
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out/prompts.json").read_text())["counts"]["rows_out"] == 200
    assert (tmp_path / "out/prompts.run.json").exists()
    if not streams:
        assert b"Traceback" not in done.stderr
        assert done.stdout.startswith(b"make_prompts ")


def test_a_terminal_that_has_gone_does_not_fail_a_step(command, tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    words = [*command, "--output", str(tmp_path / "out/prompts.parquet")]
    assert subprocess.run(words, cwd=ROOT, stdout=writer, stderr=writer).returncode == 0
    os.close(writer)
    assert (tmp_path / "out/prompts.json").exists()


def test_what_cannot_be_told_without_git_is_null(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    facts = artifact.volatile()
    assert (facts["git_commit"], facts["git_dirty"]) == (None, None)


def test_facts_that_cannot_be_written_leave_a_whole_artifact(place, capsys, monkeypatch):
    def full(path, text, write=artifact.write_text):
        if path.name.endswith(".run.json"):
            raise OSError(28, "No space left on device")
        write(path, text)

    monkeypatch.setattr(artifact, "write_text", full)
    assert execute(output="out/copied.parquet") == 0
    assert "out/copied.run.json: not written (" in capsys.readouterr().err
    made = json.loads(Path("out/copied.json").read_text())["output"]
    assert made == artifact.input_digest(Path("out/copied.parquet"))


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyError("gpu"), RuntimeError("CUDA is gone")])
def test_facts_that_cannot_be_told_leave_a_whole_artifact(place, capsys, monkeypatch, error):
    def broken():
        raise error

    monkeypatch.setattr(artifact, "volatile", broken)
    assert execute() == 0
    assert Path("out/copied.json").exists()
    assert "the artifact itself is whole" in capsys.readouterr().err


def test_a_work_folder_that_cannot_be_removed_does_not_fail_a_step(place, capsys, monkeypatch):
    def busy(folder):
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr(work, "clear", busy)
    assert execute() == 0
    assert "Device or resource busy" in capsys.readouterr().err


def test_a_work_folder_that_cannot_be_removed_does_not_hide_why_a_step_failed(place, capsys, monkeypatch):
    def busy(folder):
        raise OSError(16, "Device or resource busy")

    def bug(job):
        raise KeyError("the real reason")

    monkeypatch.setattr(work, "clear", busy)
    assert execute(bug) == 1
    assert capsys.readouterr().err.rstrip().endswith("KeyError: 'the real reason'")


def test_a_closed_stream_is_no_error(tmp_path):
    stream = (tmp_path / "log").open("w")
    stream.close()
    say("done", stream)


def test_a_text_that_a_stream_cannot_show_is_escaped(tmp_path):
    with (tmp_path / "log").open("w", encoding="ascii") as stream:
        say("13 → 12 rows", stream)
    assert (tmp_path / "log").read_text() == "13 \\u2192 12 rows\n"


def locale_of(charmap: str, place: Path) -> dict[str, str]:
    """Environment of a login shell with another encoding."""
    name = f"en_US.{charmap}"
    made = shutil.which("localedef") and subprocess.run(
        ["localedef", "-i", "en_US", "-f", charmap, place / name], capture_output=True, check=False
    )
    if not made or not (place / name).exists():
        pytest.skip(f"no locale with {charmap} can be made here (localedef)")
    return {"LOCPATH": str(place), "LC_ALL": name}


@pytest.mark.parametrize("charmap", ["ISO-8859-1", "GBK"])
def test_the_locale_decides_neither_code_digests_nor_text(tmp_path, charmap):
    """Latin-1 reads every UTF-8 file as something else, and GBK fails on some."""
    ask = (
        "from scripts.lib.planning import config; from scripts.lib.planning.plan import Plan;"
        "plan = Plan(config.load());"
        "print([plan.code(*plan.maker(path)) for path in plan.artifacts(*plan.asked('all'))], plan.config)"
    )
    environments = [{"LC_ALL": "C.UTF-8", "PYTHONUTF8": "0"}, {**locale_of(charmap, tmp_path), "PYTHONUTF8": "0"}]
    answers = [
        subprocess.run([sys.executable, "-c", ask], cwd=ROOT, env={**os.environ, **env}, capture_output=True)
        for env in environments
    ]
    assert [answer.returncode for answer in answers] == [0, 0], answers[1].stderr
    assert answers[0].stdout == answers[1].stdout
