"""The stage evaluate: exact means, changes, win rates and KL, over prompts and apart for greedy and sampled."""

import json

import pytest

from scripts import evaluate, sample_rollouts, score_logprobs
from scripts.lib.benchmarks.rewards import win_rate
from scripts.lib.data.schemas.engine_check import ENGINE_CHECK
from scripts.lib.data.schemas.evaluation import EVALUATION
from scripts.lib.data.schemas.logprobs import LOGPROBS
from scripts.lib.data.schemas.rollouts import ROLLOUTS
from scripts.lib.data.tables import read_table

SETTINGS = {"benchmark": "rewards", "rewards": ["gold", "bt"], "confidence": 0.95, "resamples": 200, "seed": 1}
SETTINGS |= {"max_kl": 50, "stop_on_warnings": False}
# k = 0 is greedy, k = 1 and 2 are sampled. Rewards of the policy and of its SFT policy, by prompt and k.
OWN = {"q1": [5.0, 1.0, 2.0], "q2": [6.0, 0.0, 0.0]}
SFT = {"q1": [4.0, 1.0, 0.0], "q2": [6.0, 1.0, 0.0]}
# log π and log π_SFT of the responses.
OWN_LOGPROBS = {"q1": [-1.0, -3.0, -5.0], "q2": [-2.0, -4.0, -6.0]}
REFERENCE = {"q1": [-1.5, -4.0, -5.5], "q2": [-2.0, -7.0, -5.5]}


@pytest.fixture
def tables(tmp_path, write, rollout):
    """Two shards, one per prompt, of rollouts, of two labellers' rewards and of reference log-probabilities."""
    texts = ["four", "two words", "three more words"]
    found = {"rollouts": [], "rewards": [], "logprobs": [], "sft_rewards": []}
    rows = {}
    for question in OWN:
        rows[question] = [
            rollout(question, k, texts[k], temperature=float(k > 0), logprob=OWN_LOGPROBS[question][k])
            for k in range(3)
        ]
    rows["q2"][2]["finish_reason"] = "length"

    def labelled(name, question, values):
        made = [
            {"prompt_id": row["prompt_id"], "k": row["k"], "reward": value, "objectives": ""}
            for row, value in zip(rows[question], values)
        ]
        return write(tmp_path / f"{name}_{question}.parquet", made, "REWARDS")

    for question in OWN:
        found["rollouts"].append(write(tmp_path / f"{question}.parquet", rows[question], "ROLLOUTS"))
        scored = [
            {"prompt_id": row["prompt_id"], "k": row["k"], "logprob": value, "tokens": row["tokens"]}
            for row, value in zip(rows[question], REFERENCE[question])
        ]
        found["logprobs"].append(write(tmp_path / f"l_{question}.parquet", scored, "LOGPROBS"))
    # All shards of the first labeller, then all of the second, whose rewards are ten times the first's.
    for labeller, factor in (("gold", 1), ("bt", 10)):
        for question in OWN:
            own = [factor * value for value in OWN[question]]
            sft = [factor * value for value in SFT[question]]
            found["rewards"].append(labelled(labeller, question, own))
            found["sft_rewards"].append(labelled(f"sft_{labeller}", question, sft))
    return found


@pytest.fixture
def run_evaluate(tmp_path, run_stage, tables):
    def call(**changed):
        output = tmp_path / "eval" / "heldout.parquet"
        settings = {key: changed.pop(key, value) for key, value in SETTINGS.items() if key != "rewards"}
        code, manifest = run_stage(evaluate, settings | {"rewards": ["gold", "bt"]}, output, **tables | changed)
        return code, read_table(output, EVALUATION).to_dicts() if code == 0 else [], manifest

    return call


def means(part):
    return {labeller: value["mean"] for labeller, value in part.items()}


def test_means_changes_win_rates_and_kl_are_exact(run_evaluate):
    code, _, manifest = run_evaluate()
    assert code == 0
    sampled = manifest["metrics"]["sampled"]
    # Gold by prompt: (1 + 2) / 2 and 0.
    assert means(sampled["rewards"]) == {"gold": 0.75, "bt": 7.5}
    # Less the SFT policy's 0.5 and 0.5: 1 and −0.5.
    assert means(sampled["change"]) == {"gold": 0.25, "bt": 2.5}
    # q1: {1, 2} against {1, 0} wins 3 and ties 1 of 4; q2: {0, 0} against {1, 0} ties 2 of 4.
    assert means(sampled["win_rate"]) == {"gold": (3.5 / 4 + 1 / 4) / 2, "bt": (3.5 / 4 + 1 / 4) / 2}
    # q1: (1 + 0.5) / 2; q2: (3 − 0.5) / 2.
    assert sampled["kl"]["mean"] == pytest.approx((0.75 + 1.25) / 2)
    # "two words" and "three more words"; ids are one more than words, one of q2's was cut off.
    assert sampled["characters"]["mean"] == (9 + 16) / 2
    assert sampled["tokens"]["mean"] == (3 + 4) / 2
    assert sampled["truncated"]["mean"] == 0.25
    assert manifest["counts"] == {"prompts": 2, "responses": 6}


@pytest.fixture
def checked(tmp_path, write, rollout, tables):
    """The tables of an engine whose own log-probabilities are 0.05 nats per token above the trainer's."""
    found, compared = {"rollouts": []}, []
    for path in tables["rollouts"]:
        rows = read_table(path, ROLLOUTS).to_dicts()
        compared += [
            {key: row[key] for key in ("prompt_id", "k", "tokens")}
            | {"engine_logprob": row["logprob"] + 0.05 * row["tokens"], "trainer_logprob": row["logprob"]}
            for row in rows
        ]
        own = [row | {"logprob": row["logprob"] + 0.05 * row["tokens"]} for row in rows]
        found["rollouts"].append(write(tmp_path / f"vllm_{path.name}", own, "ROLLOUTS"))
    return found | {"engine_checks": write(tmp_path / "engine.parquet", compared, "ENGINE_CHECK")}


def test_both_log_probabilities_of_the_kl_are_the_trainers(run_evaluate, checked):
    plain, engine = run_evaluate(), run_evaluate(**checked)
    assert engine[0] == 0
    for mode in ("sampled", "greedy"):
        assert engine[2]["metrics"][mode]["kl"] == plain[2]["metrics"][mode]["kl"]
    assert [row["kl"] for row in engine[1]] == [row["kl"] for row in plain[1]]


def test_the_sft_policy_of_another_engine_is_at_no_distance_from_itself(run_evaluate, checked):
    metrics = run_evaluate(**checked, logprobs=[], sft_rewards=[])[2]["metrics"]
    assert {metrics[mode]["kl"]["mean"] for mode in metrics} == {0.0}


def test_a_check_of_some_responses_only_is_refused(run_evaluate, checked, write, tmp_path, capsys):
    some = read_table(checked["engine_checks"], ENGINE_CHECK).to_dicts()[:-1]
    some = write(tmp_path / "some.parquet", some, "ENGINE_CHECK")
    assert run_evaluate(**checked | {"engine_checks": some})[0] == 2
    assert "response 2: not in every table of rewards and log-probabilities.\nHint: " in capsys.readouterr().out


def test_what_transformers_records_is_the_trainers_log_probability(tmp_path, run_stage, policy, prompts):
    # Sampled at another temperature: what is recorded is at temperature 1 all the same.
    sampling = {"engine": "transformers", "k": 3, "temperatures": [0, 0.5, 1], "max_prompt_tokens": 64, "seed": 1}
    sampling |= {"max_new_tokens": 8, "record_logprobs": True, "first": 0, "prompts": 5}
    for dtype, near in (("float32", 1e-5), ("bfloat16", 0.05)):
        rollouts, scored = tmp_path / dtype / "0.parquet", tmp_path / dtype / "scored.parquet"
        settings = sampling | {"dtype": dtype}
        assert run_stage(sample_rollouts, settings, rollouts, policy=policy, prompts=prompts)[0] == 0
        assert run_stage(score_logprobs, {"dtype": dtype}, scored, scorer=policy, rollouts=rollouts)[0] == 0
        recorded, own = read_table(rollouts, ROLLOUTS), read_table(scored, LOGPROBS)
        assert recorded["logprob"].to_list() == pytest.approx(own["logprob"].to_list(), abs=near)
        assert recorded["logprob"].max() < -1


def test_greedy_is_summarised_apart(run_evaluate):
    greedy = run_evaluate()[2]["metrics"]["greedy"]
    assert means(greedy["rewards"]) == {"gold": 5.5, "bt": 55.0}
    assert means(greedy["change"]) == {"gold": 0.5, "bt": 5.0}
    # One win, one tie.
    assert means(greedy["win_rate"]) == {"gold": 0.75, "bt": 0.75}
    assert greedy["kl"]["mean"] == pytest.approx(0.25)
    assert greedy["characters"] == {"mean": 4.0, "low": 4.0, "high": 4.0}
    assert greedy["truncated"]["mean"] == 0


def test_what_is_wrong_with_a_policy_stands_in_the_manifest(run_evaluate, tables, write, tmp_path):
    # All of q1's and q2's sampled responses are worth less than the SFT policy's, by gold; and more by bt.
    assert "warnings" not in run_evaluate(max_kl=5)[2]
    _, _, manifest = run_evaluate(max_kl=0.5)
    assert manifest["warnings"] == ["the KL to the SFT policy is 1.0 nats per response, above max_kl = 0.5"]
    swapped = tables["rewards"][:2] + tables["sft_rewards"][2:]
    back = tables["sft_rewards"][:2] + tables["rewards"][2:]
    _, _, manifest = run_evaluate(rewards=[*swapped], sft_rewards=[*back], confidence=0.01)
    assert manifest["warnings"] == [
        "bt fell by 2.500 against SFT while gold rose by 0.250: the policy exploits what rose"
    ]


def test_warnings_stop_an_evaluation_by_choice(run_evaluate, capsys):
    assert run_evaluate(max_kl=0.5, stop_on_warnings=True)[0] == 2
    said = capsys.readouterr().out
    assert "evaluate: the KL to the SFT policy is 1.0 nats per response, above max_kl = 0.5\nHint: " in said
    assert "stop_on_warnings of evaluation.heldout: false only warns" in said
    assert run_evaluate(max_kl=5, stop_on_warnings=True)[0] == 0


def test_a_sampling_without_greedy_responses_has_no_greedy_summary(run_evaluate, tmp_path, write, rollout):
    rows = [rollout(question, 1, "a", logprob=-1.0) for question in OWN]
    shards = [write(tmp_path / f"only_{i}.parquet", [row], "ROLLOUTS") for i, row in enumerate(rows)]
    assert set(run_evaluate(rollouts=shards)[2]["metrics"]) == {"sampled"}


def test_the_sft_policy_compares_with_itself(run_evaluate):
    metrics = run_evaluate(logprobs=[], sft_rewards=[])[2]["metrics"]
    for mode in ("sampled", "greedy"):
        assert metrics[mode]["kl"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
        assert means(metrics[mode]["win_rate"]) == {"gold": 0.5, "bt": 0.5}
        assert means(metrics[mode]["change"]) == {"gold": 0.0, "bt": 0.0}


def test_the_table_has_one_row_per_response_with_all_rewards(run_evaluate):
    _, table, _ = run_evaluate()
    assert [(row["k"], row["temperature"]) for row in table] == [(0, 0.0), (1, 1.0), (2, 1.0)] * 2
    assert [json.loads(row["rewards"]) for row in table] == [
        {"gold": value, "bt": 10 * value} for question in OWN for value in OWN[question]
    ]
    assert [row["kl"] for row in table] == pytest.approx([0.5, 1.0, 0.5, 0.0, 3.0, -0.5])


def test_the_mean_is_over_prompts_not_over_responses(tmp_path, run_stage, write, rollout):
    # q1 has one response of reward 1, q2 three of reward 0: ½ and not ¼.
    rows = [rollout("q1", 0, "a"), *(rollout("q2", k, "a") for k in range(3))]
    rewards = [
        {"prompt_id": r["prompt_id"], "k": r["k"], "reward": float(i == 0), "objectives": ""}
        for i, r in enumerate(rows)
    ]
    paths = {
        "rollouts": write(tmp_path / "0.parquet", rows, "ROLLOUTS"),
        "rewards": write(tmp_path / "r.parquet", rewards, "REWARDS"),
        "logprobs": [],
        "sft_rewards": [],
    }
    _, manifest = run_stage(evaluate, SETTINGS | {"rewards": ["gold"]}, tmp_path / "e.parquet", **paths)
    assert manifest["metrics"]["sampled"]["rewards"]["gold"]["mean"] == 0.5


@pytest.mark.parametrize("name", ["rewards", "sft_rewards", "logprobs"])
def test_tables_of_other_rollouts_are_refused(run_evaluate, tables, capsys, name):
    # The second prompt's shard stands twice and the first's is missing.
    assert run_evaluate(**{name: [tables[name][1], *tables[name][1:]]})[0] == 2
    assert "not in every table of rewards and log-probabilities.\nHint: " in capsys.readouterr().out


def test_a_missing_labellers_shards_are_refused(run_evaluate, tables):
    assert run_evaluate(rewards=tables["rewards"][:2])[0] == 2


@pytest.mark.parametrize(
    ("own", "other", "wanted"),
    [([1], [1], 0.5), ([2], [1], 1.0), ([0], [1], 0.0), ([1, 3], [2, 2, 2], 0.5), ([1, 2], [1, 0], 0.875)],
)
def test_a_win_rate_counts_all_pairs_and_ties_half(own, other, wanted):
    assert win_rate(own, other) == wanted
    assert win_rate(other, own) == 1 - wanted
