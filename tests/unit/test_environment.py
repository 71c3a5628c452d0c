"""Which python the steps start, and how many at once: what a person types counts, not what the profile says."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from scripts.lib.planning import environment
from tests.conftest import ROOT

OWN = str(Path(sys.executable).parent)


def program(folder: Path, text: str) -> str:
    """A `python` that is a shell script, in a folder for PATH."""
    folder.mkdir()
    (folder / "python").write_text(f"#!/bin/sh\n{text}\n")
    (folder / "python").chmod(0o755)
    return str(folder)


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("exit 3", "does not run: "),
        ("echo torch trl", "lacks torch, trl"),
        ("echo", ""),
        (f'exec {sys.executable} "$@"', ""),  # as a container's is started
        (f'exec {sys.executable} -S "$@"', "lacks torch, transformers, trl, datasets, polars, pydantic"),
    ],
)
def test_an_interpreter_is_asked_what_it_has(tmp_path, text, wrong):
    said = environment.lacking(program(tmp_path / "bin", text) + "/python")
    assert said.startswith(wrong) if wrong else said == ""


def test_no_interpreter_is_told(tmp_path):
    assert environment.lacking(str(tmp_path / "python")) == "no program that can be run"


def test_a_python_that_could_not_train_is_refused_by_name(tmp_path, monkeypatch):
    there = program(tmp_path / "bin", "echo torch")
    monkeypatch.setenv("PATH", there)
    assert environment.complaints("python") == [
        f"python on PATH = '{there}/python': lacks torch. Hint: `make .venv/ready` makes an environment; "
        "`. .venv/bin/activate` puts it first on PATH."
    ]


@pytest.mark.parametrize("text", ["exit 3", "echo torch", None])
def test_snakemakes_own_environment_comes_first_where_python_is_another(tmp_path, monkeypatch, text):
    there = program(tmp_path / "bin", text) if text else str(tmp_path)
    monkeypatch.setenv("PATH", there)
    monkeypatch.setenv("PYTHONUTF8", "1")
    environment.prepare()
    assert os.environ["PATH"].split(os.pathsep) == [OWN, there]


@pytest.mark.parametrize("first", [True, False])
def test_a_python_that_could_train_stays_first(tmp_path, monkeypatch, first):
    path = os.pathsep.join([OWN, "/usr/bin"] if first else [program(tmp_path / "bin", "echo"), OWN])
    monkeypatch.setenv("PATH", path)
    monkeypatch.setenv("PYTHONUTF8", "0")
    environment.prepare()
    assert os.environ["PATH"] == path
    assert os.environ["PYTHONUTF8"] == "1"


@pytest.mark.parametrize("name", ["", "logs", "benchmarks", "work"])
def test_a_place_of_the_results_that_is_no_folder_is_named(tmp_path, name):
    root = tmp_path / "out"
    assert environment.blocked(str(root)) == environment.unwritable(str(root)) == []  # it will be made
    wrong = root / name
    wrong.parent.mkdir(exist_ok=True)
    wrong.touch()
    assert f"results = '{wrong}': is no folder. Hint: move it away" in environment.blocked(str(root))[0]
    assert environment.blocked(str(wrong / "deeper"))


def test_a_read_only_folder_and_a_full_disk_are_named(tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(os, "access", lambda path, mode: Path(path).name != "logs")  # root may write anywhere
        (tmp_path / "logs").mkdir()
        (line,) = environment.unwritable(str(tmp_path))
        assert line.startswith(f"results = '{tmp_path}/logs': cannot be written. Hint: mend its permissions")
    full = SimpleNamespace(free=4096)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    (line, _) = environment.unwritable(str(tmp_path))
    assert line.startswith(f"results = '{tmp_path}': only 4096 bytes are free. Hint: ")


def test_snakemake_builds_without_an_activated_environment(tmp_path):
    path = os.pathsep.join([program(tmp_path / "bin", "exit 3"), "/usr/bin", "/bin"])
    results = f"results={tmp_path}/out"
    done = subprocess.run(
        [f"{OWN}/snakemake", "--config", results, "--", f"{tmp_path}/out/prompts/heldout-1.parquet"],
        cwd=ROOT,
        env={**os.environ, "PATH": path},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/prompts/heldout-1.json").exists()


@pytest.mark.parametrize("profile", [(), ("--profile", "profiles/gpu")])
@pytest.mark.parametrize(
    ("words", "cores"),
    [
        (("-j", "1"), 1),
        (("-j1",), 1),
        (("--jobs", "3"), 3),
        (("--cores", "1"), 1),
        (("-c1",), 1),
        ((), len(os.sched_getaffinity(0))),
    ],
)
def test_cores_are_what_the_command_line_says(monkeypatch, profile, words, cores):
    from snakemake.cli import parse_args

    monkeypatch.chdir(ROOT)
    _, options = parse_args(["all", *profile, *words])
    # Snakemake takes --jobs for --cores where nothing else says so.
    assert (options.cores if options.cores is not None else options.jobs) == cores
