"""The stage select_pairs: curated preferences as training pairs, in the annotator's orientation."""

import pytest

from scripts import select_pairs
from scripts.lib.data import tables
from scripts.lib.data.schemas.pairs import PAIRS

SETTINGS = {"size": None, "minimum_margin": 0}


def preference(number, margin=None, **given):
    messages = [{"role": "user", "content": f"question {number}"}]
    row = {
        "pair_id": f"{number:04d}",
        "prompt_id": tables.prompt_id(messages),
        "source": "test",
        "messages": messages,
        "chosen": f"good {number}",
        "rejected": f"bad {number}",
        "margin": margin,
        "annotator": "ann",
    }
    return row | given


@pytest.fixture
def select(tmp_path, run_stage, write):
    """Run the stage: (exit code, pairs, manifest)."""

    def call(rows, **given):
        dataset = write(tmp_path / "data.parquet", rows, "PREFERENCES")
        output = tmp_path / "pairs" / "curated.parquet"
        code, manifest = run_stage(select_pairs, SETTINGS | given, output, dataset=dataset)
        return code, tables.read_table(output, PAIRS).to_dicts() if code == 0 else [], manifest

    return call


def test_all_pairs_are_kept_as_annotated_and_without_token_ids(select):
    code, pairs, manifest = select([preference(2, 0.5), preference(1)])
    empty = dict.fromkeys(
        "chosen_k rejected_k chosen_reward rejected_reward prompt_ids chosen_ids rejected_ids "
        "chosen_finish_reason rejected_finish_reason".split()
    )
    kept = ("pair_id", "prompt_id", "messages", "chosen", "rejected", "margin")
    assert code == 0
    assert pairs == [{key: row[key] for key in kept} | empty for row in (preference(1), preference(2, 0.5))]
    assert manifest["counts"] == {"rows_in": 2, "dropped_small_margin": 0, "dropped_beyond_size": 0, "pairs_out": 2}


def test_a_minimum_margin_drops_and_counts_but_keeps_pairs_without_a_margin(select):
    # 1.0 is not more than 1.0; a missing margin says nothing.
    rows = [preference(1, 0.5), preference(2, 1.0), preference(3, 1.5), preference(4, None)]
    _, pairs, manifest = select(rows, minimum_margin=1.0)
    assert [pair["pair_id"] for pair in pairs] == ["0003", "0004"]
    assert manifest["counts"] == {"rows_in": 4, "dropped_small_margin": 2, "dropped_beyond_size": 0, "pairs_out": 2}


def test_without_a_minimum_the_annotators_orientation_stands_whatever_the_margin(select):
    _, pairs, _ = select([preference(1, -1.0), preference(2, 0.0)])
    assert [(pair["chosen"], pair["margin"]) for pair in pairs] == [("good 1", -1.0), ("good 2", 0.0)]


def test_size_takes_the_first_in_digest_order_after_the_margin(select):
    rows = [preference(number, float(number)) for number in (5, 3, 1, 4, 2)]
    _, pairs, manifest = select(rows, size=2, minimum_margin=1.0)
    assert [pair["pair_id"] for pair in pairs] == ["0002", "0003"]
    assert manifest["counts"] == {"rows_in": 5, "dropped_small_margin": 1, "dropped_beyond_size": 2, "pairs_out": 2}


def test_size_is_the_most_that_is_kept(select):
    code, pairs, manifest = select([preference(1)], size=2)
    assert (code, manifest["counts"]["pairs_out"], len(pairs)) == (0, 1, 1)


def test_a_margin_that_no_pair_has_is_refused(select, capsys):
    assert select([preference(1, 0.5), preference(2, 1.0)], minimum_margin=1.0)[0] == 2
    assert "no pairs: all 2 margins are at most minimum_margin = 1.0.\nHint: lower" in capsys.readouterr().out
