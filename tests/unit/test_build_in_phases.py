"""Phases: which targets, in which order, and what happens when one fails."""

import sys
from types import SimpleNamespace

import pytest

from scripts import build_in_phases
from tests.conftest import run

KNOWN = ["all", "sft", "reward", "evaluation", "weights"]
KNOWN += [f"iter{n}_{stage}" for n in (1, 2, 10) for stage in ("rollouts", "rewards", "pairs", "policy", "weights")]


@pytest.mark.parametrize(
    ("target", "order"),
    [
        ("all", ["sft", "reward", "iter1_policy", "iter2_policy", "iter10_policy", "all"]),
        ("evaluation", ["sft", "reward", "iter1_policy", "iter2_policy", "iter10_policy", "evaluation"]),
        ("weights", ["sft", "reward", "iter1_weights", "iter2_weights", "iter10_weights", "weights"]),
        ("iter2_weights", ["sft", "reward", "iter1_weights", "iter2_weights"]),
        ("iter2_policy", ["sft", "reward", "iter1_policy", "iter2_policy"]),
        ("iter2_pairs", ["sft", "reward", "iter1_policy", "iter2_pairs"]),
        ("sft", ["sft"]),
        ("reward", ["sft", "reward"]),
    ],
)
def test_the_phases_of_a_target(target, order):
    assert build_in_phases.phases(target, KNOWN) == order


@pytest.fixture
def called(monkeypatch):
    """The command lines given to a Snakemake that fails in iter1_policy."""
    calls = []

    def run(command, **_):
        calls.append(command[1:])
        return SimpleNamespace(returncode=3 * (command[-1] == "iter1_policy"), stdout="\n".join(KNOWN))

    monkeypatch.setattr(build_in_phases.subprocess, "run", run)
    return calls


def test_options_are_passed_on_and_the_first_failure_stops_it(called, capsys):
    options = ["--configfile", "a.yaml", "b.yaml", "--config", "run=main"]
    assert build_in_phases.main(["all", *options]) == 3
    assert called == [
        ["--list-target-rules", *options, "--", "all"],
        *([*options, "--", phase] for phase in ("sft", "reward", "iter1_policy")),
    ]
    said = capsys.readouterr()
    assert said.out.splitlines() == ["# phase 1 of 6: sft", "# phase 2 of 6: reward", "# phase 3 of 6: iter1_policy"]
    assert said.err == "build_in_phases: phase iter1_policy failed; later phases did not start\n"


def test_a_target_is_needed(called, capsys):
    assert build_in_phases.main(["-n"]) == 2
    assert called == []
    assert "Hint: name it first" in capsys.readouterr().err


def test_an_unknown_target_is_refused_before_the_first_phase(checkout):
    done = run(checkout, sys.executable, "-m", "scripts.build_in_phases", "iter9_policy", check=False)
    assert done.returncode == 1
    assert "target iter9_policy: run 'main' has iterations 1 to 3" in done.stdout + done.stderr
    assert "# phase" not in done.stdout
