"""Training steps of eight optimizer steps each, for tests of what a trainer does when disturbed or shared out."""

import pytest

from scripts import score_reference, train_dpo, train_reward, train_sft
from scripts.lib.data.schemas.pairs import PAIRS
from scripts.lib.kinds.trainer import Finetuned
from tests.unit.test_train_reward import SETTINGS as REWARD
from tests.unit.test_train_reward import separable

SCHEDULE = {"epochs": 2, "batch_size": 4, "learning_rate": 1e-3, "schedule": "cosine"}
TRAINING = {key: REWARD[key] for key in Finetuned.model_fields} | SCHEDULE
SFT = {**TRAINING, "kind": "train", "base": "tiny", "dataset": "talk"}
STEPS = 8
SCORING = {"dtype": "float32", "quantization": None}


def conversation(pair):
    messages = [*pair["messages"], {"role": "assistant", "content": pair["chosen"]}]
    return {"conversation_id": pair["pair_id"], "prompt_id": pair["prompt_id"], "source": "test", "messages": messages}


@pytest.fixture(scope="module")
def steps(tmp_path_factory, write, policy, run_stage, tokenizer):
    """name → (module, settings, inputs) of training steps of eight optimizer steps each."""
    from scripts.lib.models import chat

    folder = tmp_path_factory.mktemp("inputs")
    pairs = separable(0, 16)
    preferences = write(folder / "preferences.parquet", pairs, "PREFERENCES")
    heldout = write(folder / "heldout.parquet", separable(16, 4), "PREFERENCES")
    conversations = write(folder / "conversations.parquet", [conversation(pair) for pair in pairs], "CONVERSATIONS")
    rows = []
    for pair in pairs:
        row = {name: pair.get(name) for name in PAIRS}
        row["prompt_ids"] = chat.prompt_ids(tokenizer, pair["messages"])
        for side in ("chosen", "rejected"):
            row[f"{side}_ids"] = chat.completion_ids(tokenizer, pair["messages"], pair[side])
        rows.append(row)
    table = write(folder / "pairs.parquet", rows, "PAIRS")
    reference = folder / "reference.parquet"
    assert run_stage(score_reference, SCORING, reference, scorer=policy, pairs=table)[0] == 0
    dpo = {"beta": 0.1, "loss": ["sigmoid"], "loss_weights": None, "label_smoothing": 0, "start": "a", "reference": "a"}
    return {
        "sft": (train_sft, {**SFT, "packing": False}, {"base": policy, "dataset": conversations}),
        "packed": (
            train_sft,
            {**SFT, "packing": True, "batch_size": 2, "max_length": 32},
            {"base": policy, "dataset": conversations},
        ),
        "reward": (train_reward, REWARD | SCHEDULE, {"init": policy, "dataset": preferences, "heldout": heldout}),
        "dpo": (
            train_dpo,
            {**TRAINING, **dpo, "sources": [["pairs", 1.0]]},
            {"start": policy, "pairs": [table], "reference": [reference]},
        ),
    }
