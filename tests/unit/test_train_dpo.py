"""The stage train_dpo: TRL's loss on our token rows and our reference, gated, with no reference model in memory."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import LlamaForCausalLM
from trl import DPOConfig, DPOTrainer

from scripts import score_reference, train_dpo
from scripts.lib.data.schemas.reference import REFERENCE
from scripts.lib.data.tables import read_table
from scripts.lib.kinds.runs import Loss, TrainDpo
from scripts.lib.models import chat, forward, loading, reference
from scripts.lib.stage import artifact
from scripts.lib.stage.contract import Job
from scripts.lib.stage.errors import InputError
from tests.unit.conftest import stage_runtime, typed

SCORING = {"dtype": "float32", "quantization": None}
SETTINGS = {
    "learning_rate": 1e-3,
    "beta": 0.1,
    "loss": ["sigmoid"],
    "loss_weights": None,
    "label_smoothing": 0,
    "epochs": 1,
    "batch_size": 4,
    "schedule": "constant",
    "warmup_ratio": 0,
    "weight_decay": 0,
    "adam_beta2": 0.98,
    "max_length": 64,
    "lora": None,
    "seed": 1,
    "sources": [["pairs.parquet", 1.0]],
    "start": "sft/tiny",
    "reference": "sft/tiny",
    "dtype": "float32",
}
LOSSES = get_args(Loss)
# Question, chosen, rejected: lengths differ within and between pairs.
TEXTS = (
    ("say yes", "yes", "no or then"),
    ("name one color", "red", "the sea and the sky"),
    ("list three colors please now", "red blue green", "one"),
    ("count", "one two three four five", "stone river tree"),
    ("give the good number of the sea", "five", "bad bad bad"),
    ("say no", "no now", "yes yes"),
    ("name the sky", "sky", "sea tree done"),
    ("count please", "one two", "three"),
)


@pytest.fixture(scope="module")
def pairs(rollout, tokenizer):
    """Eight pairs with sampled ids; the rejected answer of every other pair was cut off."""
    rows = []
    for number, (question, *texts) in enumerate(TEXTS):
        ends = ("stop", "length" if number % 2 else "stop")
        answers = [rollout(question, k, texts[k], ends[k], tokenizer=tokenizer) for k in range(2)]
        row = {key: answers[0][key] for key in ("prompt_id", "messages", "prompt_ids")}
        row |= {"pair_id": f"{number:04d}", "margin": 1.0}
        for side, answer in zip(("chosen", "rejected"), answers):
            row |= {side: answer["response"], f"{side}_k": answer["k"], f"{side}_reward": None}
            row |= {f"{side}_ids": answer["token_ids"], f"{side}_finish_reason": answer["finish_reason"]}
        rows.append(row)
    return rows


@pytest.fixture(scope="module")
def tables(tmp_path_factory, run_stage, write, pairs, policy, other_policy):
    """tables(rows, scorer) → (pairs table, reference table by score_reference), each made once."""
    made = {}

    def find(rows=pairs, scorer=policy):
        key = (*(row["pair_id"] for row in rows), scorer)
        if key not in made:
            folder = tmp_path_factory.mktemp("pairs")
            table = write(folder / "pairs.parquet", rows, "PAIRS")
            output = folder / "reference.parquet"
            code, _ = run_stage(score_reference, SCORING, output, scorer=scorer, pairs=table)
            assert code == 0
            made[key] = (table, output)
        return made[key]

    return find


@pytest.fixture
def train(tmp_path, run_stage, tables, policy):
    """Run the stage on some pairs and their reference: (exit code, manifest, policy folder)."""

    def call(rows, name="policy", scorer=policy, runtime=None, changed=None, **given):
        table, known = tables(rows, scorer)
        paths = {"pairs": table, "reference": known} | (changed or {})
        code, manifest = run_stage(train_dpo, SETTINGS | given, tmp_path / name, runtime, start=policy, **paths)
        return code, manifest, tmp_path / name

    return call


@pytest.fixture
def trainers(monkeypatch):
    """The trainers that the stage makes; each keeps the batches that it is given."""
    found = []

    class Recording(reference.ReferenceDPOTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.batches = []
            found.append(self)

        def compute_loss(self, model, inputs, *args, **kwargs):
            self.batches.append({key: value.clone() for key, value in inputs.items()})
            return super().compute_loss(model, inputs, *args, **kwargs)

    monkeypatch.setattr(reference, "ReferenceDPOTrainer", Recording)
    return found


def weights(folder):
    return load_file(folder / "model.safetensors")


# The reference.


def test_the_reference_is_trls_own(tmp_path, pairs, tables, policy, other_policy, tokenizer):
    class TokenRows(DPOTrainer):
        def _prepare_dataset(self, dataset, *args, **kwargs):
            return dataset

    columns = ("prompt_ids", "chosen_ids", "rejected_ids")
    trainer = TokenRows(
        model=loading.load_policy(policy, "float32"),
        ref_model=loading.load_policy(other_policy, "float32"),
        args=DPOConfig(
            output_dir=str(tmp_path),
            per_device_train_batch_size=3,
            max_length=None,
            precompute_ref_log_probs=True,
            use_cpu=True,
            bf16=False,
            activation_checkpointing=False,
            report_to="none",
        ),
        train_dataset=Dataset.from_list([{column: row[column] for column in columns} for row in pairs]),
        processing_class=tokenizer,
    )
    ours = read_table(tables(scorer=other_policy)[1], REFERENCE)
    for side in ("chosen", "rejected"):
        assert ours[f"{side}_logprob"].to_list() == pytest.approx(
            list(trainer.train_dataset[f"ref_{side}_logps"]), abs=1e-4
        )


def test_no_reference_model_is_loaded(train, trainers, pairs, tables, monkeypatch):
    tables(pairs)  # made before the counting starts
    loaded, asked = [], []
    load, ask = LlamaForCausalLM.from_pretrained.__func__, loading.load_policy

    def from_pretrained(cls, *args, **kwargs):
        loaded.append(args)
        return load(cls, *args, **kwargs)

    monkeypatch.setattr(LlamaForCausalLM, "from_pretrained", classmethod(from_pretrained))
    monkeypatch.setattr(loading, "load_policy", lambda *args, **how: asked.append(args) or ask(*args, **how))
    assert train(pairs)[0] == 0
    (trainer,) = trainers
    assert trainer.ref_model is None
    assert len(asked) == len(loaded) == 1


def test_the_reference_is_not_rounded_with_the_rest_of_a_batch(monkeypatch):
    # As transformers does for a model that DeepSpeed trains in bfloat16.
    def rounded(self, inputs):
        return {key: value.bfloat16() if value.is_floating_point() else value for key, value in inputs.items()}

    monkeypatch.setattr(DPOTrainer, "_prepare_inputs", rounded)
    trainer = object.__new__(reference.ReferenceDPOTrainer)
    trainer.args = SimpleNamespace(device=torch.device("cpu"))
    exact = torch.tensor([-123.4375, -0.001])
    batch = {"input_ids": torch.tensor([[1]]), "ref_chosen_logps": exact, "ref_rejected_logps": exact, "x": exact}
    prepared = trainer._prepare_inputs(batch)
    assert prepared["x"].dtype == torch.bfloat16
    for side in ("chosen", "rejected"):
        assert torch.equal(prepared[f"ref_{side}_logps"], exact)


def test_the_loss_uses_the_reference_given_and_not_one_of_trls(train, trainers, pairs, other_policy, tables):
    # From another reference the first loss is −log σ(β · implicit margin) of the two files of log-probabilities.
    code, manifest, _ = train(pairs[:4], scorer=other_policy, start="runs/main/iter1")
    start, ref = (read_table(tables(pairs[:4], *scorer)[1], REFERENCE).to_dicts() for scorer in ((), (other_policy,)))
    margins = [
        (own["chosen_logprob"] - own["rejected_logprob"]) - (other["chosen_logprob"] - other["rejected_logprob"])
        for own, other in zip(start, ref)
    ]
    assert code == 0
    assert manifest["metrics"]["first_loss"] == pytest.approx(
        sum(math.log1p(math.exp(-0.1 * margin)) for margin in margins) / 4, abs=1e-4
    )
    assert manifest["metrics"]["rewards/margins"] == pytest.approx(0.1 * sum(margins) / 4, abs=1e-3)


# The gate.


def test_the_first_loss_is_ln_2_where_the_start_is_the_reference(train, pairs):
    code, manifest, _ = train(pairs, epochs=2)
    assert code == 0
    assert manifest["metrics"]["steps"] == 4
    assert manifest["metrics"]["first_loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert manifest["metrics"]["last_loss"] < math.log(2)


def test_the_gate_stops_a_step_whose_reference_is_of_other_weights(train, pairs, other_policy, capsys, trainers):
    code, _, folder = train(pairs, scorer=other_policy)
    error = capsys.readouterr().out
    assert code == 2
    assert error.startswith("train_dpo: gate: ") and "nats per token" in error and "ln 2" in error
    assert "\nHint: the reference file belongs to other weights" in error
    # It stopped before anything was trained, and left nothing.
    assert [trainer.batches for trainer in trainers] == [[]] and not folder.exists()


def test_the_gate_lets_another_start_pass_where_it_is_planned(train, pairs, other_policy):
    assert train(pairs[:4], scorer=other_policy, start="runs/main/iter1")[0] == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_gates_tolerance_is_per_token(pairs, policy, tokenizer, dtype):
    model = loading.load_policy(policy, "float32").eval()
    device = torch.device("cpu")
    sequences = [(row["prompt_ids"], row["chosen_ids"]) for row in pairs]
    exact = forward.token_logprobs(model, sequences, 0, device)
    rejected = forward.token_logprobs(model, [(row["prompt_ids"], row["rejected_ids"]) for row in pairs], 0, device)

    def rows(off):
        """The first pair's chosen side is `off` tolerances per token away from its reference."""
        distances = [off * train_dpo.GATE_TOLERANCE["float32"] * len(pairs[0]["chosen_ids"])] + [0.0] * 7
        return [
            {
                **{column: row[column] for column in ("prompt_ids", "chosen_ids", "rejected_ids")},
                "ref_chosen_logps": value + distance,
                "ref_rejected_logps": other,
            }
            for row, value, other, distance in zip(pairs, exact, rejected, distances)
        ]

    train_dpo.gate(model, tokenizer, rows(0.5), dtype, device)
    if dtype == "float32":
        with pytest.raises(InputError, match="nats per token apart"):
            train_dpo.gate(model, tokenizer, rows(2.0), dtype, device)
        with pytest.raises(InputError, match="nats per token apart"):
            train_dpo.gate(model, tokenizer, rows(-2.0), dtype, device)
    else:
        # Rounding to bfloat16 explains more.
        train_dpo.gate(model, tokenizer, rows(2.0), dtype, device)


@pytest.mark.parametrize(("dtype", "apart"), [("bfloat16", 0.3), ("float32", 5e-5)])
@pytest.mark.parametrize("tokens", [1, 2, 4])
def test_the_gate_lets_short_answers_scatter_as_rounding_lets_them(pairs, policy, tokenizer, dtype, apart, tokens):
    model, device = loading.load_policy(policy, "float32").eval(), torch.device("cpu")
    ids = {"prompt_ids": pairs[0]["prompt_ids"], "chosen_ids": [5] * tokens, "rejected_ids": [6] * tokens}
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bfloat16"):
        given = {
            side: forward.token_logprobs(model, [(ids["prompt_ids"], ids[f"{side}_ids"])], 0, device)[0]
            for side in ("chosen", "rejected")
        }

    def rows(off):
        """One answer of each side `off` nats per token away, the other ones not at all."""
        away = [{f"ref_{side}_logps": value + off * tokens for side, value in given.items()}]
        return [ids | row for row in away + 31 * [{f"ref_{side}_logps": value for side, value in given.items()}]]

    mean = train_dpo.gate(model, tokenizer, rows(apart / math.sqrt(tokens)), dtype, device)
    assert mean == pytest.approx(apart / math.sqrt(tokens) / 32, rel=0.05)
    with pytest.raises(InputError, match=r"nats per token apart, allowed are .*ln 2"):
        train_dpo.gate(model, tokenizer, rows(2 * apart / math.sqrt(tokens) + 1e-4), dtype, device)


@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_the_gate_stops_small_differences_that_all_lean_to_one_side(pairs, policy, tokenizer, side, monkeypatch):
    monkeypatch.setitem(train_dpo.GATE_MEAN, "bfloat16", 0.02)  # or it would take ten times as many answers
    model = loading.load_policy(policy, "float32").eval()
    device, whole = torch.device("cpu"), len(pairs)
    pairs, given = 40 * pairs, {}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for name in ("chosen", "rejected"):
            sequences = [(row["prompt_ids"], row[f"{name}_ids"]) for row in pairs]
            given[name] = [forward.token_logprobs(model, [sequence], 0, device)[0] for sequence in sequences]

    def rows(off, signs):
        """Every answer of the side is `off` nats per token from its reference."""
        return [
            row
            | {f"ref_{name}_logps": given[name][i] for name in given}
            | {f"ref_{side}_logps": given[side][i] + signs[i // whole % 2] * off * len(row[f"{side}_ids"])}
            for i, row in enumerate(pairs)
        ]

    allowed = train_dpo.GATE_MEAN["bfloat16"]
    assert train_dpo.scatter("bfloat16", sum(len(row[f"{side}_ids"]) for row in pairs)) < allowed
    # Half of what was compared is off by so much, the other side by nothing.
    gap = train_dpo.gate(model, tokenizer, rows(0.8 * allowed, (1, 1)), "bfloat16", device)
    assert gap == pytest.approx(0.4 * allowed, rel=1e-3)
    # Larger, but of both signs, as rounding is.
    train_dpo.gate(model, tokenizer, rows(4 * allowed, (1, -1)), "bfloat16", device)
    with pytest.raises(
        InputError, match=f"of {len(pairs)} {side} answers are -.* in the mean, allowed are .*ln 2.\nHint: "
    ):
        train_dpo.gate(model, tokenizer, rows(1.2 * allowed, (1, 1)), "bfloat16", device)


def test_how_far_start_and_reference_were_apart_stands_in_the_manifest(train, pairs, other_policy):
    gaps = {}
    for dtype in ("float32", "bfloat16"):
        code, manifest, _ = train(pairs, dtype=dtype)
        assert code == 0
        gaps[dtype] = manifest["metrics"]["gate_gap"]
    assert 0 <= gaps["float32"] < 1e-5 < gaps["bfloat16"] < train_dpo.GATE_TOLERANCE["bfloat16"]
    code, manifest, _ = train(pairs[:4], scorer=other_policy, start="runs/main/iter1")
    assert code == 0 and "gate_gap" not in manifest["metrics"]


def test_a_first_loss_other_than_ln_2_stops_where_theory_fixes_it():
    train_dpo.check_first_loss(0.6931)
    train_dpo.check_first_loss(0.694)
    for loss in (0.6951, 0.69, 0.0):
        with pytest.raises(InputError, match=r"ln 2 = 0.69315.\nHint: "):
            train_dpo.check_first_loss(loss)


@pytest.mark.parametrize(
    ("given", "fixed"),
    [
        ({}, True),
        ({"start": "runs/main/iter1"}, False),
        ({"loss": ["ipo"]}, False),
        ({"loss": ["sigmoid", "sft"]}, False),
        ({"dtype": "bfloat16"}, False),
    ],
)
def test_theory_fixes_the_first_loss_only_here(given, fixed):
    assert train_dpo.starts_at_ln2(typed(TrainDpo, SETTINGS | given)) is fixed


def test_pairs_beyond_the_gates_first_ones_are_caught_by_the_first_loss(
    train, tables, write, tmp_path, pairs, other_policy, capsys, monkeypatch
):
    # The gate looks at the first pairs only; here those fit and the others belong to other weights.
    monkeypatch.setattr(train_dpo, "GATE_PAIRS", 2)
    right, wrong = (read_table(tables(pairs[:4], *scorer)[1], REFERENCE).to_dicts() for scorer in ((), (other_policy,)))
    mixed = write(tmp_path / "mixed.parquet", right[:2] + wrong[2:], "REFERENCE")
    assert train(pairs[:4], changed={"reference": mixed})[0] == 2
    assert "gate: the first loss is" in capsys.readouterr().out


# The rows.


def test_the_trainer_sees_the_pairs_ids_and_nothing_is_appended(train, trainers, pairs, tokenizer, tables):
    assert train(pairs)[0] == 0
    (trainer,) = trainers
    seen = []
    for batch in trainer.batches:
        half = len(batch["input_ids"]) // 2
        for i in range(half):
            sides = []
            for place in (i, half + i):
                kept = batch["attention_mask"][place] == 1
                ids = batch["input_ids"][place][kept].tolist()
                completion = batch["completion_mask"][place][kept].tolist()
                start = completion.index(1)
                assert completion == [0] * start + [1] * (len(ids) - start)
                sides.append((ids[:start], ids[start:]))
            references = [round(batch[f"ref_{side}_logps"][i].item(), 3) for side in ("chosen", "rejected")]
            seen.append((*sides, *references))
    known = read_table(tables(pairs)[1], REFERENCE).to_dicts()
    wanted = [
        (
            (row["prompt_ids"], row["chosen_ids"]),
            (row["prompt_ids"], row["rejected_ids"]),
            pytest.approx(own["chosen_logprob"], abs=1e-3),
            pytest.approx(own["rejected_logprob"], abs=1e-3),
        )
        for row, own in zip(pairs, known)
    ]
    order = [[row["prompt_ids"] for row in pairs].index(row[0][0]) for row in seen]
    assert sorted(order) == list(range(8))
    assert seen == [wanted[i] for i in order]
    # Defect 5: a response that was cut off gets no end token and is not trained on as if it were complete.
    ends = {chat.end_of_turn(tokenizer), tokenizer.eos_token_id}
    cut = [pairs[i]["rejected_finish_reason"] == "length" for i in order]
    assert [not ends & set(row[1][1]) for row in seen] == cut and any(cut)
    assert all(row[0][1][-1] == chat.end_of_turn(tokenizer) for row in seen)


def test_curated_pairs_are_tokenised_by_the_policys_template(train, trainers, tables, pairs, tokenizer):
    empty = {"prompt_ids": None, "chosen_ids": None, "rejected_ids": None}
    rows = [row | empty | {"pair_id": f"c{row['pair_id']}"} for row in pairs[:4]]
    assert train(rows)[0] == 0
    found = trainers[0].train_dataset
    for i, row in enumerate(pairs[:4]):
        assert found[i]["prompt_ids"] == row["prompt_ids"]
        assert found[i]["chosen_ids"] == row["chosen_ids"]
        assert found[i]["rejected_ids"] == chat.completion_ids(tokenizer, row["messages"], row["rejected"])


def test_too_long_pairs_are_dropped_and_counted(train, trainers, pairs):
    lengths = [len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"])) for row in pairs]
    limit = sorted(lengths)[5]
    fit = [length <= limit for length in lengths]
    _, manifest, _ = train(pairs, max_length=limit)
    assert manifest["counts"] == {
        "pairs_in": 8,
        "dropped_by_weight": 0,
        "dropped_too_long": 8 - sum(fit),
        "pairs_trained": sum(fit),
    }
    assert list(trainers[0].train_dataset["prompt_ids"]) == [row["prompt_ids"] for row, ok in zip(pairs, fit) if ok]


def test_nothing_that_fits_exits_2(train, pairs, capsys):
    assert train(pairs, max_length=8)[0] == 2
    assert "all 8 pairs exceed max_length = 8.\nHint: raise it." in capsys.readouterr().out


# Several tables.


def load(tables, weights, *parts, seed=1):
    """Rows to train on and counts of load_pairs for several tables."""
    made = [tables(part) for part in parts]
    inputs = {"pairs": [pairs for pairs, _ in made], "reference": [known for _, known in made]}
    job = Job(
        "train_dpo",
        typed(TrainDpo, SETTINGS | {"sources": [["pairs.parquet", weight] for weight in weights], "seed": seed}),
        stage_runtime(),
        inputs,
        output=Path("unused"),
        work=Path("unused"),
    )
    return list(train_dpo.token_rows(None, train_dpo.load_pairs(job))), job.counts


def test_a_weight_below_one_uses_that_share_of_a_tables_rows(tables, pairs):
    first, second = pairs[:4], pairs
    rows, counts = load(tables, [1.0, 0.25], first, second)
    assert counts == {"pairs_in": 12, "dropped_by_weight": 6}
    assert [row["prompt_ids"] for row in rows[:4]] == [row["prompt_ids"] for row in first]
    drawn = [row["prompt_ids"] for row in rows[4:]]
    assert len(drawn) == 2 and all(ids in [row["prompt_ids"] for row in second] for ids in drawn)
    # The same rows for the same seed, others for other seeds, never the same row twice.
    assert load(tables, [1.0, 0.25], first, second)[0] == rows
    others = [load(tables, [0.5], second, seed=seed)[0] for seed in range(8)]
    chosen = {tuple(sorted(tuple(row["prompt_ids"]) for row in drawn)) for drawn in others}
    assert len(chosen) > 4 and all(len(set(found)) == 4 for found in chosen)
    # At least one row.
    assert len(load(tables, [0.01], second)[0]) == 1


def test_references_stay_with_their_pairs(tables, pairs):
    rows, _ = load(tables, [1.0, 0.5], pairs[4:], pairs)
    known = {row["pair_id"]: row for row in read_table(tables(pairs)[1], REFERENCE).to_dicts()}
    for row in rows:
        (pair,) = (pair for pair in pairs if pair["prompt_ids"] == row["prompt_ids"])
        assert row["ref_chosen_logps"] == pytest.approx(known[pair["pair_id"]]["chosen_logprob"], abs=1e-5)
        assert row["ref_rejected_logps"] == pytest.approx(known[pair["pair_id"]]["rejected_logprob"], abs=1e-5)
        assert len(row["longer_ids"]) == max(len(row["chosen_ids"]), len(row["rejected_ids"]))


@pytest.mark.parametrize("part", [slice(0, 3), slice(4, 8), slice(0, 8)])
def test_a_reference_of_other_pairs_is_refused(train, tables, pairs, capsys, part):
    assert train(pairs[:4], changed={"reference": tables(pairs[part])[1]})[0] == 2
    assert "does not hold the pairs of" in capsys.readouterr().out


def test_a_reference_with_other_tokens_is_refused(train, tables, write, tmp_path, pairs, capsys):
    rows = read_table(tables(pairs[:4])[1], REFERENCE).to_dicts()
    rows[2]["rejected_tokens"] += 1
    assert train(pairs[:4], changed={"reference": write(tmp_path / "r.parquet", rows, "REFERENCE")})[0] == 2
    error = capsys.readouterr().out
    assert "pair 0002 has" in error and "Hint: reference and policy must share a tokenizer" in error


# Losses and training.


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_of_the_schema_trains_a_step(train, pairs, policy, loss):
    smoothing = 0.1 if loss in ("exo_pair", "robust") else 0
    code, manifest, folder = train(pairs[:4], loss=[loss], label_smoothing=smoothing)
    assert code == 0
    assert manifest["metrics"]["steps"] == 1 and math.isfinite(manifest["metrics"]["first_loss"])
    before, after = weights(policy), weights(folder)
    assert max((after[name] - before[name]).abs().max().item() for name in before) > 1e-5


def test_several_losses_are_summed_with_their_weights(train, pairs):
    alone = train(pairs[:4], "sft", loss=["sft"])[1]["metrics"]["first_loss"]
    both = train(pairs[:4], "both", loss=["sigmoid", "sft"], loss_weights=[1.0, 0.2])[1]["metrics"]["first_loss"]
    assert both == pytest.approx(math.log(2) + 0.2 * alone, abs=1e-4)


def test_gradient_accumulation_makes_up_for_a_smaller_micro_batch(train, trainers, pairs, policy):
    # Two steps of four pairs each, as 4 × 1 and as 2 × 2.
    folders = [train(pairs, str(micro), runtime={"train_micro_batch": micro})[2] for micro in (4, 2)]
    assert [len(trainer.batches) for trainer in trainers] == [2, 4]
    one, two = (weights(folder) for folder in folders)
    assert all((one[name] - two[name]).abs().max() < 1e-5 for name in one)
    start = weights(policy)
    assert max((one[name] - start[name]).abs().max() for name in one) > 1e-3


def test_a_micro_batch_that_does_not_divide_the_batch_exits_2(train, pairs, capsys):
    assert train(pairs, runtime={"train_micro_batch": 3})[0] == 2
    assert "runtime.train_micro_batch = 3 does not divide batch_size = 4.\nHint: " in capsys.readouterr().out


def test_training_prefers_the_chosen(train, pairs, policy):
    _, manifest, folder = train(pairs, epochs=8, learning_rate=3e-3)
    assert manifest["metrics"]["rewards/accuracies"] == 1.0 and manifest["metrics"]["rewards/margins"] > 0.5

    def margin(place, row):
        model = loading.load_policy(place, "float32").eval()
        sequences = [(row["prompt_ids"], row[side]) for side in ("chosen_ids", "rejected_ids")]
        chosen, rejected = forward.token_logprobs(model, sequences, 0, torch.device("cpu"))
        return chosen - rejected

    assert all(margin(folder, row) > margin(policy, row) for row in pairs)


def test_the_same_inputs_give_the_same_bytes(train, pairs):
    digests = [artifact.digests_path(train(pairs, name)[2]).read_text() for name in ("a", "b")]
    assert digests[0] == digests[1]
    # The order of the rows is the seed's.
    assert artifact.digests_path(train(pairs, "c", seed=2)[2]).read_text() != digests[0]


def test_the_saved_folder_is_a_whole_policy_without_pickles(train, pairs, tokenizer):
    _, manifest, folder = train(pairs[:4])
    names = {file.name for file in folder.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pth", ".pkl", ".ckpt"))]
    assert manifest["output"] == artifact.verify_model(folder)
    saved = loading.load_tokenizer(folder)
    assert saved.chat_template == tokenizer.chat_template
    assert chat.prompt_ids(saved, pairs[0]["messages"]) == pairs[0]["prompt_ids"]
    assert loading.load_policy(folder, "float32").config.use_cache
    # The stop tokens travel with the weights.
    assert chat.stop_ids(saved, loading.generation_config(folder)) == chat.stop_ids(tokenizer)
