"""The stage check_engine: the gate between sampling and training. With vLLM's own log-probabilities: test_vllm.py."""

import pytest

from scripts import check_engine, score_logprobs
from scripts.lib.data import tables
from scripts.lib.data.schemas.logprobs import LOGPROBS

SETTINGS = {"dtype": "float32"}


@pytest.fixture
def check(tmp_path, run_stage, policy, write, rollout, tokenizer):
    """Run the stage on responses whose log-probabilities are off by so much: check(0, 0) → (exit code, manifest)."""

    def call(*offsets):
        rows = [rollout(text, 0, "red and blue", tokenizer=tokenizer) for text in ("say yes", "count")]
        rollouts, scored = write(tmp_path / "r.parquet", rows, "ROLLOUTS"), tmp_path / "s.parquet"
        assert run_stage(score_logprobs, SETTINGS, scored, scorer=policy, rollouts=rollouts)[0] == 0
        own = {row["prompt_id"]: row["logprob"] for row in tables.read_table(scored, LOGPROBS).to_dicts()}
        rows = [row | {"logprob": own[row["prompt_id"]] + offset} for row, offset in zip(rows, offsets, strict=True)]
        rollouts = write(tmp_path / "engine.parquet", rows, "ROLLOUTS")
        return run_stage(check_engine, SETTINGS, tmp_path / "check.parquet", policy=policy, rollouts=rollouts)

    return call


def test_the_trainers_own_log_probabilities_pass(check):
    code, manifest = check(0, 0)
    assert code == 0
    assert manifest["metrics"]["absolute_gap"] < 1e-6


@pytest.mark.parametrize("offset", [0.1, -0.1, float("nan"), float("-inf")])
def test_a_gap_or_what_is_no_number_is_refused_by_the_gate(check, offset, capsys):
    assert check(0, offset)[0] == 2
    said = capsys.readouterr().out
    assert "gate: engine and trainer differ by" in said and "Hint: compare dtype" in said
