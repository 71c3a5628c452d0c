"""The stage train_sft: the loss is on the assistant's own tokens, nothing is cut, equal inputs give equal bytes."""

import copy

import pytest
import torch
from safetensors.torch import load_file

from scripts import train_sft
from scripts.lib.data import tables
from scripts.lib.models import chat, forward, loading, sft
from scripts.lib.stage import artifact

SETTINGS = {
    "kind": "train",
    "base": "tiny",
    "dataset": "talk",
    "learning_rate": 1e-2,
    "batch_size": 4,
    "epochs": 1,
    "schedule": "constant",
    "warmup_ratio": 0,
    "weight_decay": 0,
    "adam_beta2": 0.98,
    "max_length": 64,
    "packing": False,
    "lora": None,
    "seed": 1,
    "dtype": "float32",
}
COLORS = ("red", "blue", "green", "gray")


def conversation(number, *turns):
    messages = [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]
    prompt = tables.prompt_id(messages[:-1])
    return {"conversation_id": f"{number:04d}", "prompt_id": prompt, "source": "test", "messages": messages}


@pytest.fixture
def train(tmp_path, run_stage, write, policy):
    """Run the stage: (exit code, manifest, policy folder)."""

    def call(rows, name="policy", runtime=None, **given):
        dataset = write(tmp_path / "data.parquet", rows, "CONVERSATIONS")
        output = tmp_path / name
        code, manifest = run_stage(train_sft, SETTINGS | given, output, runtime, base=policy, dataset=dataset)
        return code, manifest, output

    return call


@pytest.fixture
def batches(monkeypatch):
    """What the trainer hands to the model, batch by batch."""
    found = []

    class Recording(sft.TokenMeans):
        def compute_loss(self, model, inputs, *args, **kwargs):
            found.append({key: value.clone() for key, value in inputs.items() if torch.is_tensor(value)})
            return super().compute_loss(model, inputs, *args, **kwargs)

    monkeypatch.setattr(sft, "TokenMeans", Recording)
    return found


def trained_tokens(batches):
    """(ids without padding, the ids that count) of every row seen."""
    rows = []
    for batch in batches:
        for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"]):
            rows.append((ids[mask == 1].tolist(), labels[labels != sft.IGNORED].tolist()))
            assert torch.equal(ids[labels != sft.IGNORED], labels[labels != sft.IGNORED])
    return rows


def test_only_the_assistants_tokens_count(train, batches, tokenizer):
    asked = {color: f"say {color} now" for color in COLORS}
    assert train([conversation(i, asked[c], f"{c} {c}") for i, c in enumerate(COLORS)])[0] == 0
    wanted = []
    for color in COLORS:
        prompt = chat.prompt_ids(tokenizer, [{"role": "user", "content": asked[color]}])
        # Up to and including the end of turn, so that the policy learns to stop.
        answer = tokenizer.convert_tokens_to_ids([color, color, "<|eot_id|>"])
        wanted.append((prompt + answer, answer))
    assert sorted(trained_tokens(batches)) == sorted(wanted)


def test_every_assistants_turn_of_a_conversation_counts(train, batches, tokenizer):
    turns = ("name one color", "red now", "name two colors", "blue and green")
    assert train([conversation(1, *turns)])[0] == 0
    messages = conversation(1, *turns)["messages"]
    whole = chat.encode(tokenizer, chat.render(tokenizer, messages, answer_next=False))
    end = chat.end_of_turn(tokenizer)
    answers = [*chat.encode(tokenizer, turns[1]), end, *chat.encode(tokenizer, turns[3]), end]
    assert trained_tokens(batches) == [(whole, answers)]


def test_what_a_template_writes_between_turns_stays_in_the_ids_of_a_conversation(tokenizer):
    # ChatML and others write a line break after the end of turn: it is read before the next turn, never learnt.
    own = copy.deepcopy(tokenizer)
    own.chat_template = tokenizer.chat_template.replace("<|eot_id|>", "<|eot_id|>\n\n")
    turns = ("say red", "red", "say blue now", "blue and green")
    messages = conversation(1, *turns)["messages"]
    ids, mask = chat.conversation_ids(own, messages)
    whole = chat.encode(own, chat.render(own, messages, answer_next=False))
    end = chat.end_of_turn(own)
    assert whole[-1] != end == ids[-1]
    assert ids == whole[:-1]
    counted = [token for token, counts in zip(ids, mask) if counts]
    assert counted == [*chat.encode(own, turns[1]), end, *chat.encode(own, turns[3]), end]


def test_too_long_rows_are_dropped_whole_and_counted(train, batches, tokenizer):
    rows = [conversation(i, f"say {c}", c) for i, c in enumerate(COLORS)]
    ids, _ = chat.conversation_ids(tokenizer, rows[0]["messages"])
    long = [conversation(8, "say red", "red red"), conversation(9, "say the red", "red")]
    code, manifest, _ = train([*rows, *long], max_length=len(ids))
    assert code == 0
    assert manifest["counts"] == {"rows_in": 6, "dropped_too_long": 2, "rows_trained": 4}
    assert [len(ids) for ids, _ in trained_tokens(batches)] == [len(ids)] * 4


def test_nothing_that_fits_exits_2(train, capsys):
    assert train([conversation(1, "say red", "red")], max_length=8)[0] == 2
    assert "all 1 rows are longer than max_length = 8 tokens.\nHint: " in capsys.readouterr().out


def test_the_loss_falls_and_the_saved_policy_has_learnt(train, tokenizer, policy):
    rows = [conversation(i, f"say {COLORS[i % 4]}", COLORS[i % 4]) for i in range(16)]
    _, manifest, folder = train(rows, epochs=10)
    metrics = manifest["metrics"]
    assert metrics["steps"] == 40
    assert metrics["last_loss"] < 0.5 * metrics["first_loss"]
    # Before training as the first loss says, afterwards far likelier.
    prompt = chat.prompt_ids(tokenizer, rows[0]["messages"][:1])
    sequence = (prompt, chat.completion_ids(tokenizer, rows[0]["messages"][:1], "red"))
    sums = [
        forward.token_logprobs(loading.load_policy(place, "float32"), [sequence], 0, torch.device("cpu"))[0]
        for place in (policy, folder)
    ]
    assert sums[1] > -1 > sums[0]
    artifact.verify_model(folder)


def test_the_same_inputs_give_the_same_bytes(train):
    rows = [conversation(i, f"say {COLORS[i % 4]}", COLORS[i // 4]) for i in range(8)]
    digests = [artifact.digests_path(train(rows, name)[2]).read_text() for name in ("a", "b")]
    assert digests[0] == digests[1]
    # The seed decides the order of the rows.
    assert artifact.digests_path(train(rows, "c", seed=2)[2]).read_text() != digests[0]


# Packing


def test_a_packed_step_is_the_step_of_the_same_rows_apart(train, batches):
    turns = [("name one color", " ".join(COLORS[: 1 + i % 4]), "and one", COLORS[i % 4]) for i in range(8)]
    rows = [conversation(i, *said) for i, said in enumerate(turns)]
    _, apart, first = train(rows, "apart", batch_size=8)
    assert len(batches) == 2 and all("attention_mask" in batch for batch in batches)
    blocks = -(-sum(batch["attention_mask"].sum() for batch in batches).item() // 64)
    batches.clear()
    # All blocks in one optimizer step, one at a time.
    _, packed, second = train(rows, "packed", {"train_micro_batch": 1}, batch_size=blocks, packing=True)
    assert len(batches) == blocks < 8
    assert all(batch["input_ids"].shape[0] == 1 and "attention_mask" not in batch for batch in batches)
    assert sum((batch["position_ids"] == 0).sum().item() for batch in batches) == 8
    assert packed["counts"] == {**apart["counts"], "blocks_trained": blocks}
    assert packed["metrics"]["steps"] == apart["metrics"]["steps"] == 1
    assert packed["metrics"]["first_loss"] == pytest.approx(apart["metrics"]["first_loss"], abs=1e-6)
    one, two = (load_file(folder / "model.safetensors") for folder in (first, second))
    for name, weights in one.items():
        torch.testing.assert_close(two[name], weights, atol=1e-5, rtol=1e-4)
