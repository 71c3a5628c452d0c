"""Trained weights are not replaced without a word: a build that would do it says so first, and waits for a yes."""

import json
import os
import pty
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import run

BETA = "runs: {main: {dpo: {beta: 0.2}}}"
LOST = [f"replaces: runs/main/iter{n}/policy, trained " for n in (1, 2, 3)]


def state(checkout: Path) -> dict[str, tuple[int, bytes]]:
    """Time and bytes of every result; logs apart."""
    files = [path for path in (checkout / "results").rglob("*") if path.is_file() and "/logs/" not in str(path)]
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


class Terminal:
    """Snakemake started from a person's terminal, in a build of stand-ins."""

    def __init__(self, builds, checkout: Path, *words: str) -> None:
        self.master, slave = pty.openpty()
        path = f"{builds.programs}{os.pathsep}{os.environ['PATH']}"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "snakemake", *words],
            cwd=checkout,
            env={**os.environ, "PATH": path, "PYTHONDONTWRITEBYTECODE": ""},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)
        self.said = ""

    def read(self, until: str = "") -> str:
        """What it says until it has said this, or ends."""
        while not until or until not in self.said:
            try:
                self.said += os.read(self.master, 4096).decode()
            except OSError:  # it has ended
                break
        return self.said

    def answer(self, text: str) -> tuple[int, str]:
        """Type this at the question; exit code and all that it said."""
        self.read(until="[y/N] ")
        os.write(self.master, f"{text}\n".encode())
        self.read()
        return self.process.wait(), self.said.replace("\r", "")

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self.master)


@pytest.fixture
def checkout(builds):
    """A finished build with an overlay that changes beta."""
    made = builds.copy()
    (made / "beta.yaml").write_text(BETA)
    return made


def test_without_a_terminal_nothing_is_started_and_all_that_would_be_lost_is_named(builds, checkout):
    before = state(checkout)
    code, said = builds.snakemake(checkout, "all", overlay=BETA, replace=False)
    assert code == 1
    assert [line for line in said.splitlines() if line.startswith("replaces: ")] == [
        line for line in said.splitlines() if line.startswith(tuple(LOST))
    ]
    assert all(said.count(line) == 1 for line in LOST)
    assert sorted(map(said.index, LOST)) == [said.index(line) for line in LOST]
    assert "the work that is listed above would be lost; nothing was started.\nHint: " in said
    assert "--config replace=true" in said
    assert state(checkout) == before
    assert builds.plan(checkout, "all") == set()


def test_what_replaces_no_weights_is_not_asked(builds, checkout):
    code, said = builds.snakemake(checkout, "all", overlay="evaluation: {heldout: {confidence: 0.9}}", replace=False)
    assert (code, "replaces: " in said) == (0, False)


def test_weights_with_changed_code_or_data_are_asked_for_too(builds, checkout):
    code, said = builds.snakemake(checkout, "iter1_policy", overlay="seed: 3", replace=False)
    assert code == 1
    for name in ("base/world/model", "sft/tiny/policy", "reward/bt/model", "runs/main/iter1/policy"):
        assert f"replaces: {name}, trained " in said


def test_weights_pruned_and_made_again_with_other_bytes_are_asked_for(builds, checkout):
    """As on a GPU: the first iteration comes out different, and the later ones would follow without a word."""
    weights = checkout / "results/tiny/runs/main/iter1/policy"
    run(checkout, "rm", "-r", str(weights))
    code, said = builds.snakemake(checkout, "iter1_weights", replace=False, STANDIN_CODE="another GPU")
    assert (code, "replaces: " in said) == (0, False)
    before = state(checkout)
    code, said = builds.snakemake(checkout, "all", replace=False)
    assert (code, [line in said for line in LOST]) == (1, [False, True, True])
    assert state(checkout) == before


def left_unfinished(checkout: Path, tail: str) -> Path:
    """What a step leaves that is killed after it has saved something, made of what its manifest says."""
    folder = checkout / "results/tiny/work" / tail
    (folder / "checkpoint-7").mkdir(parents=True)
    made = json.loads((checkout / f"results/tiny/{tail}.json").read_text())
    (folder / "fingerprint.json").write_text(json.dumps({key: made[key] for key in ("settings", "code", "inputs")}))
    return folder


def test_unfinished_work_of_other_settings_is_not_discarded_without_a_word(builds, checkout):
    folder = left_unfinished(checkout, "runs/main/iter1/policy")
    for suffix in ("", ".json", ".sha256"):
        run(checkout, "rm", "-r", f"results/tiny/runs/main/iter1/policy{suffix}")
    code, said = builds.snakemake(checkout, "iter1_policy", overlay=BETA, replace=False)
    assert code == 1
    assert "\ndiscards: unfinished work on runs/main/iter1/policy, saved just now\n" in said
    assert (folder / "checkpoint-7").is_dir()
    # Of a broken list nobody can tell what the work was made of, and the step would begin anew.
    listing = (folder / "fingerprint.json").read_text()
    (folder / "fingerprint.json").write_text("{")
    code, said = builds.snakemake(checkout, "iter1_policy", replace=False)
    assert (code, "discards: unfinished work on runs/main/iter1/policy" in said) == (1, True), said
    (folder / "fingerprint.json").write_text(listing)
    # The step that it belongs to goes on with it.
    code, said = builds.snakemake(checkout, "iter1_policy", replace=False)
    assert (code, "discards: " in said) == (0, False), said


def test_a_dry_run_and_the_plan_page_show_it(builds, checkout):
    words = ("iter1_policy", "--configfile", "beta.yaml")
    assert run(checkout, "snakemake", "-n", *words).stderr.count(LOST[0]) == 1
    page = run(checkout, sys.executable, "-m", "scripts.show_plan", *words).stdout
    assert f"asks first, because work is lost:\n  {LOST[0]}" in page
    assert "replaces: " not in run(checkout, "snakemake", "-n", "all").stderr


@pytest.mark.parametrize("answer", ["", "no"])
def test_any_answer_but_yes_leaves_everything(builds, checkout, answer):
    before = state(checkout)
    code, said = Terminal(builds, checkout, "iter1_policy", "--configfile", "beta.yaml").answer(answer)
    assert code == 1
    assert "Go on and lose what is listed above? [y/N] " in said
    assert state(checkout) == before


def test_ctrl_c_at_the_question_is_a_no(builds, checkout):
    before = state(checkout)
    terminal = Terminal(builds, checkout, "iter1_policy", "--configfile", "beta.yaml")
    terminal.read(until="[y/N] ")
    os.kill(terminal.process.pid, signal.SIGINT)
    said = terminal.read()
    assert terminal.process.wait() == 1
    assert "nothing was started" in said
    assert "Traceback" not in said
    assert state(checkout) == before


def test_yes_goes_on(builds, checkout):
    code, said = Terminal(builds, checkout, "iter1_policy", "--configfile", "beta.yaml").answer("y")
    assert code == 0, said
    assert '"beta": 0.2' in (checkout / "results/tiny/runs/main/iter1/policy.json").read_text()


def test_killed_five_times_at_random_before_the_yes_nothing_is_lost(builds, checkout):
    """Ctrl-C and kill -9 by turns, from the start of Python to the open question."""
    before, draw = state(checkout), random.Random(5)
    for number in range(5):
        terminal = Terminal(builds, checkout, "all", "--configfile", "beta.yaml")
        time.sleep(draw.uniform(0.2, 4))
        if number % 2:
            os.write(terminal.master, b"\x03")
            time.sleep(0.2)
        terminal.kill()
        assert state(checkout) == before
        builds.snakemake(checkout, options=("--unlock",))
    assert builds.plan(checkout, "all") == set()


@pytest.mark.long
def test_killed_five_times_after_the_yes_the_build_ends_as_one_that_nothing_disturbed(builds, checkout):
    undisturbed, draw = builds.copy(), random.Random(6)
    builds.build(undisturbed, "all", overlay=BETA)
    words = ("all", "--configfile", "beta.yaml", "--config", "replace=true")
    for _ in range(5):
        terminal = Terminal(builds, checkout, *words)
        time.sleep(draw.uniform(2, 6))
        terminal.kill()
        builds.snakemake(checkout, options=("--unlock",))
    builds.build(checkout, "all", overlay=BETA)
    made, wanted = (
        {path.removeprefix(str(place)): data for path, (_, data) in state(place).items() if not volatile(path)}
        for place in (checkout, undisturbed)
    )
    assert made == wanted


def volatile(path: str) -> bool:
    return path.endswith((".run.json", ".tsv", ".snakemake_timestamp"))
