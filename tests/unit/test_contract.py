"""The stage contract, through a stage made here and, for the runnable command, through a real one."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import make_prompts
from scripts.lib.kinds.common import Block
from scripts.lib.kinds.runtime import StageRuntime
from scripts.lib.stage import artifact, contract
from scripts.lib.stage.digest import ROOT, code_digest, file_sha256, plumbing_digest, text_sha256
from scripts.lib.stage.errors import InputError

INPUTS = ("table", "parts*", "extra-part?")


class Copying(Block):
    """Settings of the stage that is made here."""

    seed: int
    text: str | None = None


def copy(job):
    """Write the table as it is."""
    job.counts = {"rows_in": 1, "rows_out": 1}
    job.metrics = {"mean": 0.5}
    job.note = "copied"
    artifact.write_text(job.output, job.input("table").read_text())


def execute(run=copy, **arguments):
    """Run the stage with these arguments laid over sensible ones; None leaves one out."""
    given = {"settings": '{"seed": 1}', "table": "table.parquet", "output": "out/copied.parquet", **arguments}
    argv = []
    for name, value in given.items():
        if value is not None:
            argv += [f"--{name.replace('_', '-')}", *(value if isinstance(value, list) else [value])]
    return contract.execute("copying", run, Copying, INPUTS, argv)


def refused(*_):
    raise AssertionError("the work was started")


# Exit codes


def test_a_stage_that_is_done_exits_0_and_says_what_it_made_in_one_line(place, capsys):
    assert execute() == 0
    out = capsys.readouterr().out
    assert out.startswith("copying out/copied: copied (")
    assert out.count("\n") == 1


def test_a_bug_exits_1_with_a_traceback_in_the_log_and_no_manifest(place, capsys):
    def bug(job):
        raise KeyError("wrong")

    assert execute(bug) == 1
    captured = capsys.readouterr()
    assert "Traceback" in captured.err
    assert "KeyError: 'wrong'" in captured.err
    assert captured.out == ""
    assert not Path("out/copied.json").exists()


def test_bad_input_exits_2_with_its_text_on_both_streams_and_no_traceback(place, capsys):
    def complain(job):
        raise InputError("row 3: no answer\nHint: add one.")

    assert execute(complain) == 2
    captured = capsys.readouterr()
    assert captured.out == "copying: row 3: no answer\nHint: add one.\n"
    assert captured.err.endswith("copying: row 3: no answer\nHint: add one.\n")
    assert "Traceback" not in captured.err
    assert not Path("out/copied.json").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"table": "nothing.parquet"}, "nothing.parquet: no such file\nHint: "),
        ({"settings": "{seed: 1}"}, "--settings: the whole: Invalid JSON"),
        ({"settings": "[1]"}, "--settings: the whole: Input should be an object\nHint: "),
        ({"settings": "{}"}, "--settings: seed: Field required\nHint: "),
        ({"settings": '{"seed": "1", "sed": 1}'}, "--settings: seed: Input should be a valid integer; sed: Extra"),
        ({"runtime": "1"}, "--runtime: the whole: Input should be an object\nHint: "),
        ({"runtime": '{"device": "gpu"}'}, "--runtime: device: Input should be 'auto', 'cpu' or 'cuda'\nHint: "),
    ],
)
def test_unusable_arguments_exit_2_before_the_work_starts(place, capsys, arguments, says):
    assert execute(refused, **arguments) == 2
    assert says in capsys.readouterr().out


@pytest.mark.parametrize("name", ["settings", "table", "output"])
def test_a_missing_argument_exits_2(place, name):
    with pytest.raises(SystemExit) as caught:
        execute(refused, **{name: None})
    assert caught.value.code == 2


def test_a_damaged_model_exits_2_before_the_work_starts(place, capsys):
    artifact.write_model(place / "model", lambda folder: (folder / "weights").write_text("1"))
    (place / "model" / "weights").write_text("2")
    assert execute(refused, table="model") == 2
    assert "model/weights: sha256 is " in capsys.readouterr().out


# Code


def test_the_code_that_the_build_was_planned_with_is_accepted(place):
    assert execute(code=code_digest("copying")) == 0


def test_other_code_is_refused_with_both_digests_before_the_work_starts(place, capsys):
    assert execute() == 0
    before = Path("out/copied.json").read_bytes()
    capsys.readouterr()
    assert execute(refused, code="copying:0123456789") == 2
    out = capsys.readouterr().out
    assert f"planned copying:0123456789\n  now     {code_digest('copying')}\nHint: " in out
    assert Path("out/copied.json").read_bytes() == before


# What the stage sees


def test_the_job_has_settings_runtime_inputs_and_output(place):
    seen = {}

    def look(job):
        seen.update(vars(job))
        copy(job)

    arguments = {"parts": ["two.parquet", "one.parquet"], "runtime": '{"device": "cpu"}'}
    assert execute(look, **arguments) == 0
    assert seen["settings"] == Copying(seed=1)
    assert seen["runtime"] == StageRuntime(device="cpu")
    assert seen["inputs"] == {
        "table": [Path("table.parquet")],
        "parts": [Path("two.parquet"), Path("one.parquet")],
        "extra_part": [],
    }
    assert seen["output"] == Path("out/copied.parquet")
    assert execute(look, extra_part="one.parquet", parts=[]) == 0
    assert seen["inputs"]["extra_part"] == [Path("one.parquet")]
    assert seen["inputs"]["parts"] == []


def test_the_old_manifest_is_gone_when_the_work_starts_and_stays_gone_if_it_fails(place):
    assert execute() == 0

    def look(job):
        assert not Path("out/copied.json").exists()
        assert Path("out/copied.parquet").exists()
        raise InputError("enough")

    assert execute(look) == 2
    assert not Path("out/copied.json").exists()


def test_a_stage_that_writes_nothing_leaves_no_manifest(place):
    assert execute(lambda job: None) != 0
    assert not Path("out/copied.json").exists()


# Manifest


def test_the_manifest_says_what_made_the_output_and_nothing_else(place):
    assert execute(parts=["two.parquet", "one.parquet"], runtime='{"device": "cpu"}') == 0
    assert json.loads(Path("out/copied.json").read_text()) == {
        "format": 1,
        "stage": "copying",
        "settings": {"seed": 1, "text": None},
        "code": code_digest("copying"),
        "inputs": {
            "table": [{"path": "table.parquet", "sha256": text_sha256("table")}],
            "parts": [
                {"path": "two.parquet", "sha256": text_sha256("two")},
                {"path": "one.parquet", "sha256": text_sha256("one")},
            ],
            "extra_part": [],
        },
        "output": text_sha256("table"),
        "counts": {"rows_in": 1, "rows_out": 1},
        "metrics": {"mean": 0.5},
    }


def test_a_models_manifest_holds_the_digest_of_its_digests_file(place):
    def make(job):
        artifact.write_model(job.output, lambda folder: (folder / "weights").write_text("1"))

    assert execute(make, output="out/policy") == 0
    manifest = json.loads(Path("out/policy.json").read_text())
    assert manifest["output"] == file_sha256("out/policy.sha256")
    assert execute(table="out/policy", run=lambda job: artifact.write_text(job.output, "x")) == 0
    manifest = json.loads(Path("out/copied.json").read_text())
    assert manifest["inputs"]["table"] == [{"path": "policy", "sha256": file_sha256("out/policy.sha256")}]


def test_a_manifest_names_what_lies_under_the_results_relative_to_them_and_sources_as_given(place):
    assert execute(output="all/of/it/copied.parquet", results="all") == 0
    (place / "all" / "table.parquet").write_text("table")
    assert execute(table="all/table.parquet", parts=["one.parquet"], output="all/b.parquet", results="all") == 0
    inputs = json.loads(Path("all/b.json").read_text())["inputs"]
    assert inputs["table"][0]["path"] == "table.parquet"
    assert inputs["parts"][0]["path"] == "one.parquet"


def test_two_runs_of_the_same_work_give_the_same_manifest_whatever_the_runtime(place):
    assert execute() == 0
    before = Path("out/copied.json").read_bytes()
    assert execute(settings='{ "seed":1 }', runtime='{"device": "cuda"}') == 0
    assert Path("out/copied.json").read_bytes() == before


def test_volatile_facts_stand_in_a_file_of_their_own(place):
    assert execute(runtime='{"device": "cpu"}') == 0
    facts = json.loads(Path("out/copied.run.json").read_text())
    assert {"finished", "host", "python", "packages", "git_commit", "git_dirty"} < set(facts)
    assert {"seconds", "cpu_seconds", "cpus", "machine", "peak_memory_mib"} < set(facts)
    assert (facts["gpus"], facts["bytes"]) == (0, len("table"))
    assert facts["runtime"] == {"device": "cpu"}
    assert sorted(path.name for path in Path("out").iterdir()) == [
        "copied.json",
        "copied.parquet",
        "copied.run.json",
    ]


def test_a_change_of_the_plumbing_shows_in_the_run_file_and_nowhere_in_the_manifest(place):
    assert execute() == 0
    manifest, first = Path("out/copied.json").read_bytes(), json.loads(Path("out/copied.run.json").read_text())
    assert first["plumbing"] == plumbing_digest()
    plumbing = place / "repository" / "scripts" / "lib" / "stage"
    plumbing.mkdir(parents=True)
    (plumbing / "slots.py").write_text("WAIT_SECONDS = 2.0\n")
    assert execute() == 0
    second = json.loads(Path("out/copied.run.json").read_text())
    assert second["plumbing"] == plumbing_digest() != first["plumbing"]
    assert Path("out/copied.json").read_bytes() == manifest


# The log's first line


def test_the_logs_first_line_is_the_command_that_was_given(place, capsys):
    settings = '{"seed": 1, "text": "it\'s \\"so\\" $HOME `x`"}'
    assert execute(settings=settings) == 0
    first = capsys.readouterr().err.split("\n")[0]
    assert first.startswith("# ")
    expected = ["python", "-m", "scripts.copying", "--settings", settings, "--table", "table.parquet"]
    assert shlex.split(first.removeprefix("# ")) == [*expected, "--output", "out/copied.parquet"]


def test_the_logs_first_line_runs_by_hand_and_makes_the_same_bytes(tmp_path, capsys):
    settings = '{"kind": "world", "split": "iteration", "size": 3, "number": 2, "seed": 1}'
    output = tmp_path / "it's here.parquet"
    assert make_prompts.main(["--settings", settings, "--output", str(output)]) == 0
    line = capsys.readouterr().err.split("\n")[0].removeprefix("# ")
    before = output.read_bytes(), output.with_suffix(".json").read_bytes()
    output.unlink()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(["bash", "-c", line], cwd=ROOT, env={**os.environ, "PATH": path}, check=True, capture_output=True)
    assert (output.read_bytes(), output.with_suffix(".json").read_bytes()) == before


def test_a_thread_that_a_library_leaves_behind_does_not_abort_a_stage_that_is_done(tmp_path):
    # Python runs this before the stage. The thread would ask for the interpreter while that goes down: SIGABRT.
    (tmp_path / "sitecustomize.py").write_text(
        "import threading, torch\n"
        "def work():\n"
        "    numbers = torch.zeros(100)\n"
        "    while True:\n"
        "        numbers + numbers\n"
        "threading.Thread(target=work, daemon=True).start()\n"
    )
    settings = '{"kind": "world", "split": "iteration", "size": 3, "number": 2, "seed": 1}'
    output = tmp_path / "prompts.parquet"
    words = [sys.executable, "-m", "scripts.make_prompts", "--settings", settings, "--output", str(output)]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(words, cwd=ROOT, env=environment, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout.count("make_prompts ")) == (0, 1), done.stderr


def test_other_processes_look_into_the_work_folder_only_when_what_was_old_is_gone(place, monkeypatch):
    work = Path("out/work/copied")
    work.mkdir(parents=True)
    (work / "rows-1-of-2.arrow").write_text("of other settings")
    seen = []

    def agree(value):
        seen.append(sorted(path.name for path in work.iterdir()))
        return value

    monkeypatch.setattr(contract.ranks, "agree", agree)
    assert execute() == 0
    assert seen == [["fingerprint.json", "lock"]]
