"""Scoring stages: log-probabilities and rewards are those of each row alone, in order, whatever the batches."""

import random
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaForSequenceClassification

from scripts import score_logprobs, score_reference, score_rollouts, verify_rollouts
from scripts.lib.data import tables
from scripts.lib.data.schemas.logprobs import LOGPROBS
from scripts.lib.data.schemas.reference import REFERENCE
from scripts.lib.data.schemas.rewards import REWARDS
from scripts.lib.kinds import families
from scripts.lib.models import chat, forward, loading
from scripts.lib.stage import artifact

SETTINGS = {"dtype": "float32"}
ANSWERS = ("red", "blue and green", "", "one two three four five then no", "yes", "sea sky tree stone")


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory, tokenizer, save_model):
    """A sequence classifier with random weights."""
    folder = tmp_path_factory.mktemp("reward") / "model"
    return save_model(folder, tokenizer, seed=3, kind=LlamaForSequenceClassification, tie_word_embeddings=False)


@pytest.fixture(scope="module")
def rollouts(tmp_path_factory, write, rollout, tokenizer):
    """(path, rows): answers of different lengths to two prompts, one of them cut off."""
    rows = [rollout("say yes", k, answer, tokenizer=tokenizer) for k, answer in enumerate(ANSWERS)]
    rows += [
        rollout("list three colors please now", k, answer, tokenizer=tokenizer) for k, answer in enumerate(ANSWERS)
    ]
    rows[3] = rollout("say yes", 3, ANSWERS[3], "length", tokenizer=tokenizer)
    return write(tmp_path_factory.mktemp("rollouts") / "0.parquet", rows, "ROLLOUTS"), rows


def by_hand(folder, prompt, completion):
    """Log-probability of a completion: one sequence, no padding, one token after the other."""
    model = loading.load_policy(folder, "float32").eval()
    total = 0.0
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + completion])).logits[0].double()
    for place, token in enumerate(completion):
        row = logits[len(prompt) + place - 1]
        total += (row[token] - torch.logsumexp(row, 0)).item()
    return total


def test_token_logprobs_are_the_sums_by_hand_for_any_lengths_and_padding(policy):
    sequences = [([1, 20, 21], [22]), ([1, 20, 21, 22, 23, 24, 25], [26, 27, 5]), ([1], [30, 31, 32, 33, 34, 5])]
    wanted = [by_hand(policy, *sequence) for sequence in sequences]
    model = loading.load_policy(policy, "float32").eval()
    # The padding token never counts, not even when it is the end of turn, 5.
    for pad in (0, 5):
        found = forward.token_logprobs(model, sequences, pad, torch.device("cpu"))
        assert found == pytest.approx(wanted, abs=1e-5)
    assert forward.token_logprobs(model, sequences[::-1], 0, torch.device("cpu")) == pytest.approx(
        wanted[::-1], abs=1e-5
    )


def test_an_empty_completion_has_log_probability_zero(policy):
    model = loading.load_policy(policy, "float32").eval()
    found = forward.token_logprobs(model, [([1, 20], []), ([1, 20], [21])], 0, torch.device("cpu"))
    assert found[0] == 0.0 and found[1] == pytest.approx(by_hand(policy, [1, 20], [21]), abs=1e-5)


def test_batches_hold_every_index_once_within_the_budget_longest_first():
    rng = random.Random(3)
    for _ in range(200):
        lengths = [rng.randint(1, 40) for _ in range(rng.randint(0, 30))]
        budget = rng.choice([1, 16, 50, 100, 10_000])
        batches = forward.batches_by_length(lengths, budget)
        assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
        sizes = [lengths[i] for batch in batches for i in batch]
        assert sizes == sorted(sizes, reverse=True)
        for batch in batches:
            # Padded to its longest; a row that is longer than the budget stands alone.
            assert len(batch) == 1 or max(lengths[i] for i in batch) * len(batch) <= budget


def test_batches_are_these():
    # 5 + 5 fit 10; then 3 · 3 fit 10 and a fourth would not.
    assert forward.batches_by_length([3, 5, 3, 5, 2, 1], 10) == [[1, 3], [0, 2, 4], [5]]
    assert forward.batches_by_length([], 10) == []


def score(run_stage, module, output, budget, **inputs):
    particular = {score_rollouts: {"labeller": "bt"}, score_reference: {"quantization": None}}
    settings = SETTINGS | particular.get(module, {})
    code, manifest = run_stage(module, settings, output, {"score_tokens": budget}, **inputs)
    assert code == 0
    return manifest


def test_a_reward_is_the_same_alone_and_in_a_batch_and_rows_keep_their_order(
    tmp_path, run_stage, reward_model, rollouts, tokenizer
):
    path, rows = rollouts
    written = []
    # One row at a time, some, all at once.
    for budget in (1, 60, 10_000):
        output = tmp_path / f"{budget}.parquet"
        manifest = score(run_stage, score_rollouts, output, budget, model=reward_model, rollouts=path)
        assert manifest["counts"] == {"rows_in": 12, "rows_out": 12, "special_tokens_removed": 0}
        written.append(tables.read_table(output, REWARDS).to_dicts())
    model = loading.load_reward(reward_model, "float32").eval()
    wanted = []
    for row in rows:
        # In the reward model's own template, whole, with one BOS; a cut-off response is scored like any other.
        ids = tokenizer.apply_chat_template(
            [*row["messages"], {"role": "assistant", "content": row["response"]}], tokenize=True, return_dict=True
        )["input_ids"]
        assert ids.count(tokenizer.bos_token_id) == 1
        with torch.no_grad():
            wanted.append(model(input_ids=torch.tensor([ids])).logits[0, 0].item())
    assert len({round(reward, 4) for reward in wanted}) == 12
    for table in written:
        assert [(row["prompt_id"], row["k"]) for row in table] == [(row["prompt_id"], row["k"]) for row in rows]
        assert [row["reward"] for row in table] == pytest.approx(wanted, abs=1e-5)
    assert manifest["metrics"]["mean"] == pytest.approx(sum(wanted) / 12, abs=1e-5)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("objective", [False, True])
@pytest.mark.parametrize("module", [score_rollouts, verify_rollouts])
def test_a_reward_that_is_no_number_is_refused_by_prompt_and_response(
    tmp_path, run_stage, reward_model, rollouts, monkeypatch, capsys, module, value, objective
):
    path, rows = rollouts

    def label(job, rows):
        return [(0.0 if objective else value, {"help": value}) if i == 7 else (1.0, {}) for i in range(len(rows))]

    monkeypatch.setattr(families, "load", lambda family, name: SimpleNamespace(label=label))
    settings = {"dtype": "float32", "labeller": "bt"} if module is score_rollouts else {"verifier": "world_gold"}
    inputs = {"model": reward_model} if module is score_rollouts else {}
    assert run_stage(module, settings, tmp_path / "r.parquet", rollouts=path, **inputs)[0] == 2
    where = f"{path}: prompt {rows[7]['prompt_id']}, response {rows[7]['k']}"
    said = f"{where}: {'help' if objective else 'reward'} is {value}, must be a finite number.\nHint: "
    assert said in capsys.readouterr().out


def test_a_reward_model_with_a_weight_that_is_no_number_is_refused(
    tmp_path, run_stage, reward_model, tokenizer, rollouts, capsys
):
    model = loading.load_reward(reward_model, "float32")
    model.model.embed_tokens.weight.data[:] = float("nan")
    folder = tmp_path / "model"
    artifact.write_model(folder, lambda place: loading.save(model, tokenizer, place, "float32"))
    path, rows = rollouts
    inputs = {"model": folder, "rollouts": path}
    assert run_stage(score_rollouts, SETTINGS | {"labeller": "bt"}, tmp_path / "r.parquet", **inputs)[0] == 2
    said = f"prompt {rows[0]['prompt_id']}, response 0: reward is nan, must be a finite number.\nHint: the reward model"
    assert said in capsys.readouterr().out


def test_a_special_token_spelled_out_in_a_response_is_not_read_as_one(
    tmp_path, run_stage, write, rollout, reward_model, tokenizer
):
    end = tokenizer.convert_ids_to_tokens(chat.end_of_turn(tokenizer))
    nested = end[:3] + end + end[3:]  # taking one out must not leave another
    rows = [rollout("say yes", k, answer) for k, answer in enumerate(["yes", f"yes {end}", f"{nested} yes"])]
    output = tmp_path / "rewards.parquet"
    path = write(tmp_path / "rollouts.parquet", rows, "ROLLOUTS")
    manifest = score(run_stage, score_rollouts, output, 1000, model=reward_model, rollouts=path)
    assert manifest["counts"]["special_tokens_removed"] == 2
    rewards = [row["reward"] for row in tables.read_table(output, REWARDS).to_dicts()]
    assert rewards == pytest.approx([rewards[0]] * 3, abs=1e-6)


def test_rewards_of_a_bfloat16_model_are_not_rounded_to_bfloat16(reward_model, tokenizer):
    model = loading.load_reward(reward_model, "bfloat16").eval()
    model.score.weight.data *= 50
    sequences = [[1, 20, 21, 22, 23, 5], [1, 20, 21, 22, 24, 5]]
    one, two = found = forward.rewards(model, tokenizer, sequences, torch.device("cpu"))
    with torch.no_grad():
        last = [model.model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1].float() for ids in sequences]
    assert found == pytest.approx([(row @ model.score.weight[0].float()).item() for row in last], abs=0.05)
    assert all(reward != torch.tensor(reward).bfloat16().item() for reward in found)
    assert one != two
    # Nothing is left behind: the model itself, asked otherwise, is what it was.
    assert model(input_ids=torch.tensor([sequences[0]])).logits.dtype == torch.bfloat16


def test_rewards_of_a_model_that_was_just_trained_under_autocast_are_not_rounded(reward_model, tokenizer):
    model, sequences = loading.load_reward(reward_model, "float32").eval(), [[1, 20, 21, 22, 23, 5]]
    model.score.weight.data *= 50
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (found,) = forward.rewards(model, tokenizer, sequences, torch.device("cpu"))
    assert found != torch.tensor(found).bfloat16().item()
    assert found == pytest.approx(forward.rewards(model, tokenizer, sequences, torch.device("cpu"))[0], rel=0.05)


def test_rewards_of_a_float32_model_are_the_models_own_to_the_last_bit(reward_model, tokenizer):
    model = loading.load_reward(reward_model, "float32").eval()
    sequences = [[1, 20, 21, 22, 23, 5], [1, 20, 21, 5]]
    padded = tokenizer.pad({"input_ids": sequences}, padding_side="right", return_tensors="pt")
    with torch.no_grad():
        own = model(**padded).logits[:, 0].double().tolist()
    assert forward.rewards(model, tokenizer, sequences, torch.device("cpu")) == own


def test_logprobs_are_those_of_the_sampled_ids_whatever_the_batches(tmp_path, run_stage, policy, rollouts):
    path, rows = rollouts
    wanted = [by_hand(policy, row["prompt_ids"], row["token_ids"]) for row in rows]
    for budget in (1, 60, 10_000):
        output = tmp_path / f"{budget}.parquet"
        score(run_stage, score_logprobs, output, budget, scorer=policy, rollouts=path)
        table = tables.read_table(output, LOGPROBS).to_dicts()
        assert [(row["prompt_id"], row["k"], row["tokens"]) for row in table] == [
            (row["prompt_id"], row["k"], row["tokens"]) for row in rows
        ]
        assert [row["logprob"] for row in table] == pytest.approx(wanted, abs=1e-4)


def pair(chosen, rejected, ids=True):
    """A pairs row of two rollouts of one prompt, with their ids or, like a curated one, without."""
    row = {
        "pair_id": f"{chosen['prompt_id']} {chosen['k']} {rejected['k']}",
        "prompt_id": chosen["prompt_id"],
        "messages": chosen["messages"],
        "margin": 1.0,
        "prompt_ids": chosen["prompt_ids"] if ids else None,
    }
    for side, answer in (("chosen", chosen), ("rejected", rejected)):
        row |= {side: answer["response"], f"{side}_k": answer["k"], f"{side}_reward": None}
        row |= {f"{side}_ids": answer["token_ids"] if ids else None, f"{side}_finish_reason": answer["finish_reason"]}
    return row


def test_the_reference_is_the_log_probability_of_the_same_ids(tmp_path, run_stage, write, other_policy, rollouts):
    path, rows = rollouts
    score(run_stage, score_logprobs, tmp_path / "l.parquet", 512, scorer=other_policy, rollouts=path)
    known = {
        (row["prompt_id"], row["k"]): row for row in tables.read_table(tmp_path / "l.parquet", LOGPROBS).to_dicts()
    }
    pairs = [pair(rows[i], rows[j]) for i, j in ((1, 3), (0, 5), (7, 9), (10, 8))]
    table = write(tmp_path / "pairs.parquet", pairs, "PAIRS")
    for budget in (1, 60, 10_000):
        output = tmp_path / f"{budget}.parquet"
        score(run_stage, score_reference, output, budget, scorer=other_policy, pairs=table)
        found = tables.read_table(output, REFERENCE).to_dicts()
        assert [row["pair_id"] for row in found] == [row["pair_id"] for row in pairs]
        for row, made in zip(found, pairs):
            for side in ("chosen", "rejected"):
                same = known[made["prompt_id"], made[f"{side}_k"]]
                assert row[f"{side}_logprob"] == pytest.approx(same["logprob"], abs=1e-4)
                assert row[f"{side}_tokens"] == same["tokens"]


def test_curated_pairs_are_scored_as_the_template_writes_them(tmp_path, run_stage, write, policy, rollouts, tokenizer):
    _, rows = rollouts
    both = [(rows[1], rows[4]), (rows[6], rows[9])]
    scored = []
    for ids in (True, False):
        pairs = write(tmp_path / f"{ids}.parquet", [pair(*sides, ids=ids) for sides in both], "PAIRS")
        score(run_stage, score_reference, tmp_path / f"r{ids}.parquet", 512, scorer=policy, pairs=pairs)
        scored.append(tables.read_table(tmp_path / f"r{ids}.parquet", REFERENCE).to_dicts())
    assert scored[0] == scored[1]
    # The end of turn counts.
    assert scored[0][0]["chosen_tokens"] == len("blue and green".split()) + 1
    ids = chat.completion_ids(tokenizer, rows[1]["messages"], "blue and green")
    assert ids[-1] == tokenizer.convert_tokens_to_ids("<|eot_id|>")
    assert scored[0][0]["chosen_logprob"] == pytest.approx(by_hand(policy, rows[1]["prompt_ids"], ids), abs=1e-4)
