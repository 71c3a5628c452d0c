"""Steps that end well although something is wrong with them: what they warn of, where it is shown, and what stops."""

import json

import pytest

from scripts.lib.data import gates
from scripts.lib.kinds.evaluation import Evaluate
from scripts.lib.planning import warned
from scripts.lib.stage import artifact
from tests.unit.conftest import typed

SETTINGS = {"benchmark": "rewards", "rewards": ["gold", "bt"], "confidence": 0.95, "resamples": 200, "seed": 1}
SETTINGS |= {"max_kl": 50, "stop_on_warnings": False}


def interval(low, high):
    return {"mean": (low + high) / 2, "low": low, "high": high}


def summary(gold=(0.1, 0.3), bt=(0.5, 1.5), kl=5.0, truncated=0.0):
    """One policy's numbers in one mode."""
    change = {"gold": interval(*gold), "bt": interval(*bt)}
    return {"change": change, "kl": interval(kl - 1, kl + 1), "truncated": interval(truncated, truncated)}


# Training


@pytest.mark.parametrize(
    "losses",
    [
        [0.693],
        [0.693, 0.5],
        [1.73, 1.77, 1.62, 1.68, 1.49],
        # Single batches above the start, of the demo's trainings.
        [1.759, 1.648, 1.641, 1.564] + 17 * [1.6] + [1.483, 1.583, 1.846],
        [1.158, 1.128, 1.142, 1.156] + 15 * [1.1] + [1.151, 1.082, 1.049, 1.093, 1.133],
        # One bad batch in the middle of a training that recovered.
        [0.693, 9.0, 0.6, 0.5],
        [-2.0, -2.5],
        [0.0, 0.0],
    ],
)
def test_a_training_that_learns_or_stays_where_it_is_warns_of_nothing(losses):
    assert gates.of_training(losses, [1.0] * len(losses)) == []


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ([0.693, 0.9, 1.4], "the loss ended at 1.4, above its start of 0.693"),
        ([3.2, *([6.2] * 23)], "the loss ended at 6.2, above its start of 3.2"),
        ([0.693, *([0.5] * 17), 40.0, 60.0], "the loss ended at 50, above its start of 0.693"),
        ([-2.0, -1.0], "the loss ended at -1, above its start of -2"),
        ([0.0, 0.1], "the loss ended at 0.1, above its start of 0"),
    ],
)
def test_a_loss_that_ends_above_its_start_is_warned_of(losses, said):
    (warning,) = gates.of_training(losses, [1.0] * len(losses))
    assert warning == f"{said}: lower the learning rate"


def test_a_gradient_norm_that_grows_is_warned_of():
    falling = [1.0 / (i + 1) for i in range(20)]
    (warning,) = gates.of_training(falling, [0.5] + 17 * [2.0] + [5.0, 6.0])
    assert warning.startswith("the gradient norm grew from 0.5 to 5.5, more than 10-fold: lower the learning rate")
    # Threefold, as in healthy trainings of the demo; and falling.
    assert gates.of_training(falling, [0.36] + 18 * [0.9] + [1.5]) == []
    assert gates.of_training(falling, [9.0] * 10 + [0.1] * 10) == []


@pytest.mark.parametrize(("accuracy", "count"), [(0.9, 0), (0.51, 0), (0.5, 1), (0.1, 1)])
def test_a_reward_model_no_better_than_chance_is_warned_of(accuracy, count):
    assert len(gates.of_reward(accuracy)) == count


def test_a_step_whose_learning_rate_is_2_warns_in_manifest_and_log(tmp_path, run_stage, steps, capsys):
    module, settings, inputs = steps["sft"]
    output = tmp_path / "model"
    code, manifest = run_stage(module, settings | {"learning_rate": 2.0, "schedule": "constant"}, output, **inputs)
    assert code == 0
    start, end = manifest["metrics"]["first_loss"], manifest["metrics"]["last_loss"]
    assert end > 2 * start
    assert manifest["warnings"][0].startswith("the loss ended at ")
    log = capsys.readouterr().err
    assert all(f"\nwarning: {warning}\n" in log for warning in manifest["warnings"])


@pytest.mark.parametrize("name", ["dpo", "sft", "reward"])
def test_a_healthy_step_has_no_warnings_in_its_manifest(tmp_path, run_stage, steps, name):
    module, settings, inputs = steps[name]
    code, manifest = run_stage(module, settings, tmp_path / "model", **inputs)
    assert code == 0 and "warnings" not in manifest


def test_warnings_stop_a_training_by_choice_and_nothing_is_lost(tmp_path, run_stage, steps, capsys):
    module, settings, inputs = steps["sft"]
    settings = settings | {"learning_rate": 2.0, "schedule": "constant"}
    assert run_stage(module, settings, tmp_path / "a" / "model", {"stop_on_warnings": False}, **inputs)[0] == 0
    output, often = tmp_path / "b" / "model", {"checkpoint_minutes": 0}
    assert run_stage(module, settings, output, often | {"stop_on_warnings": True}, **inputs)[0] == 2
    said = capsys.readouterr().out
    assert "train_sft: the loss ended at " in said
    assert "\nHint: change what the warnings name; runtime.stop_on_warnings: false only warns" in said
    assert not output.exists() and (tmp_path / "b" / "work" / "model" / "checkpoints").is_dir()
    # The key says nothing of the result: the same step goes on where it stood.
    assert run_stage(module, settings, output, often, **inputs)[0] == 0
    assert "continuing from" in capsys.readouterr().err
    assert artifact.digests_path(output).read_text() == artifact.digests_path(tmp_path / "a" / "model").read_text()
    assert (tmp_path / "a" / "model.json").read_bytes() == output.with_suffix(".json").read_bytes()


# Evaluation


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, []),
        # The demo's healthy runs.
        ({"kl": 11.0}, []),
        ({"kl": 50.0, "truncated": 0.49}, []),
        # Not clearly: the interval holds 0.
        ({"gold": (-0.2, 0.1)}, []),
        (
            {"bt": (-1.0, -0.5)},
            ["bt fell by 0.750 against SFT while gold rose by 0.200: the policy exploits what rose"],
        ),
        ({"kl": 50.5}, ["the KL to the SFT policy is 50.5 nats per response, above max_kl = 50"]),
        (
            {"gold": (-0.6, -0.4)},
            ["gold fell by 0.500 against SFT while bt rose by 1.000: the policy exploits what rose"],
        ),
        ({"gold": (-0.6, -0.4), "bt": (-1.0, 1.0)}, ["gold fell by 0.500 against SFT"]),
        ({"gold": (-0.6, -0.4), "bt": (-3.0, -1.0)}, ["gold fell by 0.500 against SFT"]),
        ({"gold": (-0.1, 0.1), "bt": (-3.0, -1.0)}, []),
        ({"truncated": 0.5}, ["50 % of the responses were cut off before the policy ended its turn"]),
        ({"truncated": 1.0}, ["100 % of the responses were cut off before the policy ended its turn"]),
        # The SFT policy against itself.
        ({"gold": (0.0, 0.0), "bt": (0.0, 0.0), "kl": 0.0}, []),
    ],
)
def test_an_evaluation_warns_of_what_went_wrong(given, said):
    assert gates.of_evaluation(summary(**given), typed(Evaluate, SETTINGS)) == said


def test_the_bound_of_the_kl_is_a_setting():
    far = summary(kl=300.0)
    for bound, count in ((None, 0), (301, 0), (299.5, 1)):
        assert len(gates.of_evaluation(far, typed(Evaluate, SETTINGS | {"max_kl": bound}))) == count


def means(gold, bt, width=0.1):
    return {"rewards": {"gold": interval(gold - width / 2, gold + width / 2), "bt": interval(bt - 0.1, bt + 0.1)}}


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (
            means(0.9, 3),
            means(0.6, 4),
            ["gold fell by 0.300 in this iteration while bt rose: the policy exploits what rose"],
        ),
        (
            means(0.6, 4),
            means(0.9, 3),
            ["bt fell by 1.000 in this iteration while gold rose: the policy exploits what rose"],
        ),
        (means(0.6, 3), means(0.9, 4), []),
        (means(0.9, 4), means(0.6, 3), []),
        # Of nearly the width of the intervals, and of next to nothing at the highest reward.
        (means(0.9, 3), means(0.75, 4), []),
        (means(0.9, 3), means(0.6, 3.15), []),
        (means(1.0, 3, 0.0), means(0.995, 4, 0.009), []),
    ],
)
def test_rewards_that_rise_while_others_fall_in_an_iteration_are_warned_of(before, after, said):
    assert gates.of_iteration(before, after, ["gold", "bt"]) == said


# The terminal


def test_the_warnings_of_what_was_made_are_told_with_their_manifests(tmp_path):
    def made(path, *warnings):
        manifest = artifact.manifest_path(tmp_path / path)
        artifact.write_json(manifest, {"counts": {}} | ({"warnings": warnings} if warnings else {}))
        return str(tmp_path / path)

    policy, other = made("runs/main/iter1/policy", "one", "two"), made("sft/tiny/policy")
    table, gone = made("runs/main/iter1/eval/heldout.parquet", "three"), str(tmp_path / "never/made.parquet")
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    assert warned.lines([policy, gone, table, other, policy, str(tmp_path / "broken.parquet")]) == [
        f"warning: {tmp_path}/runs/main/iter1/eval/heldout.json: three",
        f"warning: {tmp_path}/runs/main/iter1/policy.json: one",
        f"warning: {tmp_path}/runs/main/iter1/policy.json: two",
    ]
    assert warned.lines([]) == []


def test_a_manifest_says_of_warnings_only_where_there_are_any(tmp_path, run_stage, steps):
    """Manifests of earlier releases have no such key, and stay what they are."""
    module, settings, inputs = steps["sft"]
    assert run_stage(module, settings, tmp_path / "model", **inputs)[0] == 0
    assert set(json.loads((tmp_path / "model.json").read_text())) == {
        *("format", "stage", "settings", "code", "inputs", "output", "counts", "metrics"),
    }
