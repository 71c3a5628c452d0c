"""The stage train_reward: exact held-out metrics, a padding token of its own, and a model that learns."""

import math

import pytest
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from scripts import train_reward
from scripts.lib.data import tables
from scripts.lib.models import chat, loading
from scripts.lib.stage import artifact
from scripts.make_base import BOS, EOS, TURN_END

SETTINGS = {
    "kind": "bt",
    "init": "sft/tiny",
    "dataset": "ratings",
    "heldout": "heldout",
    "learning_rate": 1e-2,
    "batch_size": 8,
    "epochs": 1,
    "schedule": "constant",
    "warmup_ratio": 0,
    "weight_decay": 0,
    "adam_beta2": 0.98,
    "max_length": 64,
    "lora": None,
    "center_rewards_coefficient": None,
    "seed": 1,
    "dtype": "float32",
}
NOUNS = ("sea", "sky", "tree", "stone", "river", "red", "blue", "green")


def preference(number, chosen, rejected, question="name one color"):
    messages = [{"role": "user", "content": question}]
    return {
        "pair_id": f"{number:04d}",
        "prompt_id": tables.prompt_id(messages),
        "source": "test",
        "messages": messages,
        "chosen": chosen,
        "rejected": rejected,
        "margin": None,
        "annotator": "",
    }


def separable(first, count):
    """Pairs that differ in one word: good against bad, at either place of an answer of two words."""
    pairs = []
    for i in range(first, first + count):
        noun = NOUNS[i % len(NOUNS)]
        answers = [f"{word} {noun}" if i % 2 else f"{noun} {word}" for word in ("good", "bad")]
        pairs.append(preference(i, *answers, question=f"name one {NOUNS[i // 8 % 8]}"))
    return pairs


@pytest.fixture
def train(tmp_path, run_stage, write, policy):
    """Run the stage: (exit code, manifest, model folder)."""

    def call(rows, heldout, name="model", init=policy, runtime=None, **given):
        paths = {
            "dataset": write(tmp_path / "train.parquet", rows, "PREFERENCES"),
            "heldout": write(tmp_path / "heldout.parquet", heldout, "PREFERENCES"),
        }
        runtime = {"train_micro_batch": 8, **(runtime or {})}
        code, manifest = run_stage(train_reward, SETTINGS | given, tmp_path / name, runtime, init=init, **paths)
        return code, manifest, tmp_path / name

    return call


@pytest.mark.parametrize(
    ("margins", "wanted"),
    [
        # Won, lost, tied: ties count half.
        ([2.0, -1.0, 0.0], (0.5, (math.log1p(math.exp(-2)) + math.log1p(math.exp(1)) + math.log(2)) / 3, None)),
        # A tie: one half predicted, and seen once each way round.
        ([0.0], (0.5, math.log(2), 0.0)),
        # ¾ predicted, always seen: off by ¼, and the other way round too.
        ([math.log(3)], (1.0, math.log(4 / 3), 0.25)),
        # ¾ predicted and three of four seen: calibrated.
        ([math.log(3)] * 3 + [-math.log(3)], (0.75, (3 * math.log(4 / 3) + math.log(4)) / 4, 0.0)),
        # ¾ predicted, half seen.
        ([math.log(3), -math.log(3)], (0.5, (math.log(4 / 3) + math.log(4)) / 2, 0.25)),
        # Certain and wrong; nothing overflows.
        ([-1000.0], (0.0, 1000.0, 1.0)),
        ([1000.0, 1000.0], (1.0, 0.0, 0.0)),
    ],
)
def test_heldout_metrics_are_exact(margins, wanted):
    found = train_reward.heldout_metrics(margins)
    assert found["heldout_accuracy"] == pytest.approx(wanted[0])
    assert found["heldout_loss"] == pytest.approx(wanted[1])
    if wanted[2] is not None:
        assert found["heldout_calibration_error"] == pytest.approx(wanted[2], abs=1e-12)


def test_separable_pairs_are_learnt(train, tokenizer):
    code, manifest, folder = train(separable(0, 64), separable(64, 32), epochs=6)
    metrics = manifest["metrics"]
    assert code == 0
    assert metrics["heldout_accuracy"] > 0.9
    assert metrics["heldout_loss"] < metrics["first_loss"]
    assert metrics["heldout_longer_is_chosen"] == 0
    # The metrics are the saved model's, scored one by one.
    artifact.verify_model(folder)
    model = loading.load_reward(folder, "float32").eval()
    with torch.no_grad():
        margins = []
        for row in separable(64, 32):
            prompt = chat.prompt_ids(tokenizer, row["messages"])
            ids = [
                prompt + chat.completion_ids(tokenizer, row["messages"], row[side]) for side in ("chosen", "rejected")
            ]
            scores = [model(input_ids=torch.tensor([side])).logits[0, 0].item() for side in ids]
            margins.append(scores[0] - scores[1])
    wanted = train_reward.heldout_metrics(margins)
    assert {key: metrics[key] for key in wanted} == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("padding", [EOS, TURN_END, None])
def test_padding_gets_a_token_of_its_own(tmp_path, train, tokenizer, save_model, padding):
    # RewardModeling#49: where padding is the end token, the classifier reads the wrong position and scores chosen
    # and rejected alike. This policy has no [PAD] in its vocabulary, like SmolLM2 and other base models.
    raw = tokenizer.backend_tokenizer.to_str().replace('"[PAD]"', '"[SPARE]"')
    own = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(raw), bos_token=BOS, eos_token=EOS, pad_token=padding
    )
    own.chat_template = tokenizer.chat_template
    init = save_model(tmp_path / "init", own)
    rows = [
        # The answers differ at the start, at the end, and in length.
        preference(1, "good sea", "bad sea"),
        preference(2, "sea good", "sea bad"),
        preference(3, "sea", "sea tree stone river one two three"),
        preference(4, "name name name name sky good", "sky"),
    ]
    code, manifest, folder = train(rows, rows, init=init, batch_size=4, learning_rate=1e-5)
    assert code == 0
    saved = loading.load_tokenizer(folder)
    model = loading.load_reward(folder, "float32").eval()
    assert saved.pad_token == train_reward.PAD and saved.pad_token_id == len(tokenizer) == len(saved) - 1
    assert saved.pad_token_id not in chat.stop_ids(saved)
    assert model.config.pad_token_id == saved.pad_token_id
    assert model.get_input_embeddings().num_embeddings == len(saved)
    sequences = [
        chat.prompt_ids(saved, row["messages"]) + chat.completion_ids(saved, row["messages"], row[side])
        for row in rows
        for side in ("chosen", "rejected")
    ]
    padded = saved.pad({"input_ids": sequences}, padding_side="right", return_tensors="pt")
    with torch.no_grad():
        together = model(**padded).logits[:, 0].tolist()
        alone = [model(input_ids=torch.tensor([ids])).logits[0, 0].item() for ids in sequences]
    assert together == pytest.approx(alone, abs=1e-5)
    assert all(abs(together[2 * i] - together[2 * i + 1]) > 1e-4 for i in range(4))
    margins = [alone[2 * i] - alone[2 * i + 1] for i in range(4)]
    assert manifest["metrics"]["heldout_loss"] == pytest.approx(
        train_reward.heldout_metrics(margins)["heldout_loss"], abs=1e-4
    )


def test_a_padding_token_that_is_distinct_already_stays(train, tokenizer):
    _, _, folder = train(separable(0, 8), separable(8, 2))
    assert loading.load_tokenizer(folder).pad_token_id == tokenizer.pad_token_id
    assert len(loading.load_tokenizer(folder)) == len(tokenizer)


def test_long_pairs_are_dropped_on_both_sides_and_counted(train, tokenizer):
    rows = separable(0, 8)
    prompt = chat.prompt_ids(tokenizer, rows[0]["messages"])
    longest = len(prompt + chat.completion_ids(tokenizer, rows[0]["messages"], rows[0]["chosen"]))
    # One word more on either side is over the limit.
    rows += [preference(20, "good good sea", "bad sea"), preference(21, "good sea", "bad bad sea")]
    heldout = [*separable(8, 3), preference(30, "good good sea", "bad sea", question="name one sea")]
    _, manifest, _ = train(rows, heldout, max_length=longest)
    assert manifest["counts"] == {
        "pairs_in": 10,
        "dropped_too_long": 2,
        "pairs_trained": 8,
        "heldout_in": 4,
        "heldout_dropped_too_long": 1,
        "heldout_scored": 3,
    }


def test_nothing_that_fits_exits_2(train, capsys):
    assert train(separable(0, 4), separable(4, 2), max_length=8)[0] == 2
    assert "0 training and 0 held-out pairs fit max_length = 8.\nHint: " in capsys.readouterr().out


def test_the_same_inputs_give_the_same_bytes(train):
    digests = [
        artifact.digests_path(train(separable(0, 8), separable(8, 2), name)[2]).read_text() for name in ("a", "b")
    ]
    assert digests[0] == digests[1]
    # The head is drawn from the seed.
    assert artifact.digests_path(train(separable(0, 8), separable(8, 2), "c", seed=2)[2]).read_text() != digests[0]
