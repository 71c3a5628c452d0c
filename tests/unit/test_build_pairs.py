"""The stage build_pairs: which response is chosen, which rejected, and why a prompt gives no pair."""

import ast
import inspect
import random

import pytest

from scripts import build_pairs
from scripts.lib.data import tables
from scripts.lib.data.schemas.pairs import PAIRS
from scripts.lib.kinds.pairing import BuildPairs
from scripts.lib.stage.digest import text_sha256
from tests.unit.conftest import typed

SETTINGS = {
    "strategy": "max_min",
    "chosen_quantile": 1.0,
    "rejected_quantile": 0.0,
    "minimum_margin": 0,
    "length_penalty": 0,
    "length_unit": "character",
    "size": None,
    "seed": 1,
}
REASONS = {"all_truncated", "single_response", "identical", "tied", "better_truncated", "small_margin", "same_response"}
REASONS |= {"all_empty", "better_empty"}


def candidates(scores, truncated=(), texts=None, prompt_id="p"):
    """One prompt's responses with these scores; those in `truncated` were cut off."""
    return [
        {
            "prompt_id": prompt_id,
            "k": k,
            "response": texts[k] if texts else f"answer {k}",
            "finish_reason": "length" if k in truncated else "stop",
            "score": score,
        }
        for k, score in enumerate(scores)
    ]


def choose(rows, **given):
    """(k of chosen, k of rejected) or the reason."""
    chosen = build_pairs.choose(rows, typed(BuildPairs, SETTINGS | given))
    return chosen if isinstance(chosen, str) else (chosen[0]["k"], chosen[1]["k"])


def reward_row(row, reward):
    return {"prompt_id": row["prompt_id"], "k": row["k"], "reward": float(reward), "objectives": ""}


@pytest.fixture
def build(tmp_path, run_stage, write):
    """Run the stage on rollouts and rewards: (exit code, pairs, manifest)."""

    def call(rollouts, rewards, **given):
        rewards = [reward_row(row, reward) for row, reward in zip(rollouts, rewards)] if rewards else []
        paths = {
            "rollouts": write(tmp_path / "0.parquet", rollouts, "ROLLOUTS"),
            "rewards": write(tmp_path / "r0.parquet", rewards, "REWARDS"),
        }
        output = tmp_path / "pairs.parquet"
        code, manifest = run_stage(build_pairs, SETTINGS | given, output, **paths)
        return code, tables.read_table(output, PAIRS).to_dicts() if code == 0 else [], manifest

    return call


@pytest.mark.parametrize(
    ("scores", "given", "wanted"),
    [
        ([3, 1, 4, 1.5], {"strategy": "max_min"}, (2, 1)),
        ([3, 1, 4, 1.5], {"strategy": "max_max"}, (2, 0)),
        # Ties within the ranking go by k: the first best, the last worst.
        ([5, 5, 1, 1], {"strategy": "max_min"}, (0, 3)),
        # Ranking 4, 3, 2, 1, 0: a quarter from the top is k = 3, a quarter from the bottom k = 1.
        ([0, 10, 20, 30, 40], {"strategy": "quantile", "chosen_quantile": 0.75, "rejected_quantile": 0.25}, (3, 1)),
        ([0, 10, 20, 30, 40], {"strategy": "quantile", "chosen_quantile": 1.0, "rejected_quantile": 0.5}, (4, 2)),
        # The default quantiles are best against worst.
        ([3, 1, 4, 1.5], {"strategy": "quantile"}, (2, 1)),
        # Two responses: every strategy finds the same pair.
        ([1, 2], {"strategy": "max_min"}, (1, 0)),
        ([1, 2], {"strategy": "max_max"}, (1, 0)),
        ([1, 2], {"strategy": "max_random"}, (1, 0)),
    ],
)
def test_each_strategy_picks_its_pair(scores, given, wanted):
    assert choose(candidates(scores), **given) == wanted


def test_max_random_is_random_over_seeds_and_the_same_for_one_seed():
    # In the original "max_random" is always the second response.
    rows = candidates([1, 9, 3, 2])
    drawn = [choose(rows, strategy="max_random", seed=seed) for seed in range(300)]
    assert drawn == [choose(rows, strategy="max_random", seed=seed) for seed in range(300)]
    assert {chosen for chosen, _ in drawn} == {1}
    counts = [sum(rejected == k for _, rejected in drawn) for k in (0, 2, 3)]
    assert sum(counts) == 300 and all(70 <= count <= 130 for count in counts)


def test_max_random_draws_anew_for_each_prompt():
    drawn = {choose(candidates([9, 1, 2, 3], prompt_id=f"p{i}"), strategy="max_random") for i in range(30)}
    assert drawn == {(0, 1), (0, 2), (0, 3)}


@pytest.mark.parametrize(
    ("scores", "truncated", "given", "wanted"),
    [
        # The best response was cut off: the next complete one is chosen.
        ([9, 5, 1], {0}, {}, (1, 2)),
        # A truncated response may be rejected.
        ([9, 5, 1], {2}, {}, (0, 2)),
        # The only complete response is the worst: the other one would outrank it.
        ([9, 5, 1], {0, 1}, {}, "better_truncated"),
        # Second best of those below the chosen: the truncated one above it is no candidate.
        ([9, 5, 1], {0}, {"strategy": "max_max"}, (1, 2)),
        ([9, 5, 1], {0, 1, 2}, {}, "all_truncated"),
        # The chosen quantile falls on a truncated response: the nearest complete one in the ranking.
        ([9, 7, 5, 3, 1], {0}, {"strategy": "quantile"}, (1, 4)),
        ([9, 7, 5, 3, 1], {0, 1, 2, 3}, {"strategy": "quantile", "rejected_quantile": 0.5}, "better_truncated"),
    ],
)
def test_a_truncated_response_is_never_chosen(scores, truncated, given, wanted):
    assert choose(candidates(scores, truncated), **given) == wanted


@pytest.mark.parametrize(
    ("rows", "given", "wanted"),
    [
        (candidates([2, 2]), {}, "tied"),
        (candidates([2, 1], texts=["same", "same"]), {}, "identical"),
        (candidates([2, 2], texts=["same", "same"]), {}, "identical"),
        # Exactly the minimum is not more than the minimum.
        (candidates([2, 1.5]), {"minimum_margin": 0.5}, "small_margin"),
        (candidates([2, 1.25]), {"minimum_margin": 0.5}, (0, 1)),
        (candidates([2]), {}, "single_response"),
        (candidates([2], {0}), {}, "all_truncated"),
        # Nobody wants a policy that learns to say nothing.
        (candidates([2, 1], texts=["", "words"]), {}, "better_empty"),
        (candidates([2, 1], texts=["", "words"]), {"strategy": "quantile"}, "same_response"),
        (candidates([3, 2, 1], texts=["no", "", "words"]), {"strategy": "quantile", "chosen_quantile": 0.5}, (0, 2)),
        (candidates([2, 1], texts=["", " \n\t"]), {}, "all_empty"),
        (candidates([2, 1], {0}, texts=["cut off", ""]), {}, "all_empty"),
        (candidates([2], texts=[""]), {}, "all_empty"),
        (candidates([3, 2, 1], {0}, texts=["cut off", "", "words"]), {}, "better_truncated"),
        (candidates([3, 2, 1], {1}, texts=["", "cut off", "words"]), {}, "better_empty"),
        # The best of those with words is chosen, and saying nothing may be the worst.
        (candidates([3, 2, 1], texts=["", "words", "more"]), {}, (1, 2)),
        (candidates([3, 2, 1], texts=["", "words", "more"]), {"strategy": "max_max"}, (1, 2)),
        (candidates([3, 2, 1], texts=["", "words", "more"]), {"strategy": "quantile"}, (1, 2)),
        (candidates([2, 1], texts=["words", ""]), {}, (0, 1)),
        (candidates([2, 1], texts=["words", ""]), {"strategy": "max_random"}, (0, 1)),
    ],
)
def test_what_gives_no_pair_says_why(rows, given, wanted):
    assert choose(rows, **given) == wanted


@pytest.mark.parametrize(
    ("unit", "penalty", "wanted"),
    [
        ("character", 0.01, [1 - 0.01 * 9, 0.5 - 0.01 * 3]),
        ("token", 0.1, [1 - 0.1 * 3, 0.5 - 0.1 * 7]),
        ("character", 0, [1, 0.5]),
    ],
)
def test_the_length_penalty_is_per_character_or_per_token(unit, penalty, wanted):
    rows = [{"reward": 1.0, "response": "nine char", "tokens": 3}, {"reward": 0.5, "response": "two", "tokens": 7}]
    given = typed(BuildPairs, SETTINGS | {"length_penalty": penalty, "length_unit": unit})
    assert [build_pairs.penalised(row, given) for row in rows] == pytest.approx(wanted)


@pytest.mark.parametrize("strategy", ["max_min", "max_max", "max_random", "quantile"])
def test_the_winner_by_penalised_reward_is_chosen_although_its_raw_reward_is_lower(build, rollout, strategy):
    # Defect 2: the original takes ranks from the penalised reward and then decides the orientation on the raw one.
    # Penalised: 1.0 − 0.001 · 600 = 0.4 and 0.5 − 0.001 · 50 = 0.45.
    rows = [rollout("q", 0, "x" * 600), rollout("q", 1, "y" * 50)]
    _, (pair,), manifest = build(rows, [1.0, 0.5], strategy=strategy, length_penalty=0.001)
    assert (pair["chosen_k"], pair["rejected_k"]) == (1, 0)
    assert (pair["chosen_reward"], pair["rejected_reward"]) == (0.5, 1.0)
    assert pair["margin"] == pytest.approx(0.05)
    assert manifest["metrics"]["mean_margin"] == pytest.approx(0.05)


def test_a_pair_holds_ids_texts_rewards_and_finish_reasons_as_sampled(build, rollout):
    best, worst = rollout("q", 0, "good one"), rollout("q", 2, "bad one now", finish_reason="length")
    _, pairs, manifest = build([best, rollout("q", 1, "fine"), worst], [3, 2, 1])
    assert pairs == [
        {
            "pair_id": text_sha256(f"{best['prompt_id']} 0 2")[:16],
            "prompt_id": best["prompt_id"],
            "messages": best["messages"],
            "chosen": "good one",
            "rejected": "bad one now",
            "chosen_k": 0,
            "rejected_k": 2,
            "chosen_reward": 3.0,
            "rejected_reward": 1.0,
            "margin": 2.0,
            "prompt_ids": [1, 2, 3],
            "chosen_ids": [10, 11, 12],
            # Cut off, so no end of turn is there, and none is added (defect 5).
            "rejected_ids": [10, 11, 12],
            "chosen_finish_reason": "stop",
            "rejected_finish_reason": "length",
        }
    ]
    assert manifest["metrics"] == {
        "mean_margin": 2.0,
        "chosen_tokens": 3.0,
        "rejected_tokens": 3.0,
        "rejected_truncated": 1.0,
        "mean_reward": 2.0,
        "reward_spread": 1.0,
        "distinct_responses": 1.0,
        "truncated": pytest.approx(1 / 3),
    }


@pytest.mark.parametrize(("cut", "warned"), [(1, False), (2, True), (3, True)])
def test_responses_that_were_mostly_cut_off_are_warned_of(build, rollout, cut, warned):
    rows = [rollout("q", k, f"answer {k}", "length" if k < cut else "stop") for k in range(4)]
    code, _, manifest = build(rows, [0, 1, 2, 3])
    said = f"{25 * cut} % of the responses were cut off before the policy ended its turn"
    assert code == 0 and manifest.get("warnings", []) == ([said] if warned else [])


@pytest.mark.parametrize("reward", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("at", [0, 2])
def test_a_reward_that_is_no_number_is_refused_by_name(build, rollout, capsys, reward, at):
    rows = [rollout("q", k, f"answer {k}") for k in range(3)]
    assert build(rows, [reward if k == at else k for k in range(3)])[0] == 2
    said = (
        f"rewards: prompt {rows[0]['prompt_id']}, response {at}: reward is {reward}, must be a finite number.\nHint: "
    )
    assert said in capsys.readouterr().out


@pytest.mark.parametrize("samples", [2, 4, 8])
def test_any_k_gives_a_pair_for_every_prompt(build, rollout, samples):
    # Defect 1: four responses per prompt crashed a step that expected eight.
    rows = [rollout(f"q{i}", k, f"answer {k}") for i in range(3) for k in range(samples)]
    rewards = [(7 * k + i) % samples for i in range(3) for k in range(samples)]
    _, pairs, manifest = build(rows, rewards)
    assert manifest["counts"] == {
        "prompts_in": 3,
        "responses_in": 3 * samples,
        "responses_not_trainable": 0,
        "responses_empty": 0,
        "pairs_out": 3,
    }
    assert [(pair["chosen_reward"], pair["rejected_reward"]) for pair in pairs] == [(samples - 1, 0)] * 3


def test_one_response_per_prompt_gives_no_pairs_and_says_so(build, rollout, capsys):
    assert build([rollout("q1", 0, "a"), rollout("q2", 0, "b")], [1, 2])[0] == 2
    said = capsys.readouterr().out
    assert "no pairs: 2 prompts, all dropped: {'single_response': 2}.\nHint: for single_response, raise k" in said


def test_no_response_at_all_is_told_apart(build, capsys):
    assert build([], [])[0] == 2
    assert "no pairs: there is no response to any prompt\nHint: every prompt was longer" in capsys.readouterr().out


def test_there_is_a_remedy_for_every_reason():
    tree = ast.parse(inspect.getsource(build_pairs.choose))
    reasons = {
        node.value.value for node in ast.walk(tree) if isinstance(node, ast.Return) and hasattr(node.value, "value")
    }
    of_unfit = {f"{how}_{why}" for how in ("all", "better") for why in ("truncated", "empty")}
    assert reasons | of_unfit == build_pairs.REMEDIES.keys()


def test_every_prompt_is_a_pair_or_a_counted_drop(build, rollout):
    rows = [
        *(rollout("pair", k, f"answer {k}") for k in range(2)),
        *(rollout("tied", k, f"answer {k}") for k in range(2)),
        *(rollout("identical", k, "same") for k in range(2)),
        *(rollout("all truncated", k, f"answer {k}", "length") for k in range(2)),
        rollout("better truncated", 0, "long", "length"),
        rollout("better truncated", 1, "short"),
        rollout("single", 0, "alone"),
        *(rollout("small", k, f"answer {k}") for k in range(2)),
        # Special tokens inside: what was judged is not what would be trained on.
        *(rollout("special", k, f"answer {k}", trainable=False) for k in range(2)),
        rollout("half special", 0, "a", trainable=False),
        rollout("half special", 1, "b"),
        *(rollout("all empty", k, "") for k in range(2)),
        rollout("better empty", 0, ""),
        rollout("better empty", 1, "a"),
    ]
    rewards = [1, 0, 1, 1, 1, 0, 1, 0, 1, 0, 1, 1, 0.75, 1, 0, 1, 0, 1, 0, 1, 0]
    code, pairs, manifest = build(rows, rewards, minimum_margin=0.25)
    assert code == 0 and [pair["messages"][0]["content"] for pair in pairs] == ["pair"]
    assert manifest["counts"] == {
        "prompts_in": 11,
        "responses_in": 21,
        "responses_not_trainable": 3,
        "responses_empty": 3,
        "pairs_out": 1,
        "dropped_all_empty": 1,
        "dropped_all_truncated": 1,
        "dropped_better_empty": 1,
        "dropped_better_truncated": 1,
        "dropped_identical": 1,
        "dropped_none_trainable": 1,
        "dropped_single_response": 2,
        "dropped_small_margin": 1,
        "dropped_tied": 1,
    }


def test_size_keeps_the_first_in_digest_order_and_counts_the_rest(build, rollout):
    rows = [rollout(f"q{i}", k, f"answer {k}") for i in range(5) for k in range(2)]
    _, whole, _ = build(rows, [1, 0] * 5)
    _, some, manifest = build(rows, [1, 0] * 5, size=3)
    assert {pair["pair_id"] for pair in some} == set(sorted(pair["pair_id"] for pair in whole)[:3])
    assert manifest["counts"] == {
        "prompts_in": 5,
        "responses_in": 10,
        "responses_not_trainable": 0,
        "responses_empty": 0,
        "pairs_out": 3,
        "dropped_beyond_size": 2,
    }
    # More than there is keeps all.
    assert build(rows, [1, 0] * 5, size=9)[1] == whole


def test_shards_are_read_together(tmp_path, run_stage, write, rollout):
    shards = [[rollout(f"q{i}", k, f"answer {k}") for k in range(2)] for i in range(3)]
    rollouts = [write(tmp_path / f"{i}.parquet", rows, "ROLLOUTS") for i, rows in enumerate(shards)]
    rewards = [
        write(tmp_path / f"r{i}.parquet", [reward_row(row, row["k"]) for row in rows], "REWARDS")
        for i, rows in enumerate(shards)
    ]
    output = tmp_path / "pairs.parquet"
    # The order of the reward shards does not matter: they are joined by prompt and k.
    code, manifest = run_stage(build_pairs, SETTINGS, output, rollouts=rollouts, rewards=rewards[::-1])
    assert (code, manifest["counts"]["pairs_out"]) == (0, 3)
    assert tables.read_table(output, PAIRS)["chosen_k"].to_list() == [1, 1, 1]


@pytest.mark.parametrize(
    "change",
    [
        lambda rewards: rewards[:-1],  # one missing
        lambda rewards: [*rewards, rewards[0] | {"k": 7}],  # one too many
        lambda rewards: [row | {"prompt_id": "other"} for row in rewards],  # of another prompt
        lambda rewards: [],  # none
    ],
)
def test_rewards_of_other_rollouts_are_refused(tmp_path, run_stage, write, rollout, capsys, change):
    rows = [rollout("q", k, f"answer {k}") for k in range(3)]
    rollouts = write(tmp_path / "0.parquet", rows, "ROLLOUTS")
    rewards = write(tmp_path / "r0.parquet", change([reward_row(row, row["k"]) for row in rows]), "REWARDS")
    code, _ = run_stage(build_pairs, SETTINGS, tmp_path / "pairs.parquet", rollouts=rollouts, rewards=rewards)
    assert code == 2
    assert "the rewards belong to other rollouts" in capsys.readouterr().out


def test_the_same_shard_of_rewards_twice_is_refused_as_input(tmp_path, run_stage, write, rollout, capsys):
    rows = [rollout("q", k, f"answer {k}") for k in range(3)]
    rollouts = write(tmp_path / "0.parquet", rows, "ROLLOUTS")
    rewards = write(tmp_path / "r0.parquet", [reward_row(row, row["k"]) for row in rows], "REWARDS")
    output = tmp_path / "pairs.parquet"
    # Exit code 1 is a bug of the project; bad input is 2.
    assert run_stage(build_pairs, SETTINGS, output, rollouts=rollouts, rewards=[rewards, rewards])[0] == 2


def test_for_any_rewards_the_chosen_is_better_complete_and_another_response():
    rng = random.Random(7)
    seen = set()
    for trial in range(2000):
        samples = rng.randint(1, 8)
        texts = [rng.choice(["", " ", *(f"answer {i}" for i in range(6))]) for _ in range(samples)]
        truncated = {k for k in range(samples) if rng.random() < 0.3}
        # Few different scores, so that ties are common.
        rows = candidates([rng.randint(0, 6) / 2 for _ in range(samples)], truncated, texts, f"p{trial}")
        low, high = sorted(rng.sample([0, 0.25, 0.5, 0.75, 1], 2))
        given = {
            "strategy": rng.choice(["max_min", "max_random", "max_max", "quantile"]),
            "chosen_quantile": high,
            "rejected_quantile": low,
            "minimum_margin": rng.choice([0, 0.5]),
            "seed": trial,
        }
        rng.shuffle(rows)
        pair = build_pairs.choose(rows, typed(BuildPairs, SETTINGS | given))
        if isinstance(pair, str):
            seen.add(pair)
            continue
        chosen, rejected = pair
        assert chosen["score"] - rejected["score"] > given["minimum_margin"]
        assert chosen["finish_reason"] == "stop" and chosen["response"].strip()
        assert chosen["k"] != rejected["k"] and chosen["response"] != rejected["response"]
    assert seen == REASONS
