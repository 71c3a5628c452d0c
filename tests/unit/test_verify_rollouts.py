"""The stage verify_rollouts: the world's gold score of every response, from the prompt's requests."""

import json

import pytest

from scripts import verify_rollouts
from scripts.lib.data import tables, world
from scripts.lib.data.schemas.rewards import REWARDS

SETTINGS = {"verifier": "world_gold"}


def verify(tmp_path, run_stage, write, rows):
    output = tmp_path / "rewards" / "gold" / "0.parquet"
    rollouts = write(tmp_path / "0.parquet", rows, "ROLLOUTS")
    code, manifest = run_stage(verify_rollouts, SETTINGS, output, rollouts=rollouts)
    return code, tables.read_table(output, REWARDS).to_dicts() if code == 0 else [], manifest


def test_every_response_is_scored_in_order_by_its_own_requests(tmp_path, run_stage, write, rollout):
    rows = []
    for made in world.prompts("evaluation", 3, 1):
        for k, answer in enumerate(["", "red red red", " ".join(world.THINGS[:6])]):
            finish = "length" if k == 2 else "stop"
            rows.append(rollout(made["content"], k, answer, finish, metadata=json.dumps(made["requests"])))
    code, table, manifest = verify(tmp_path, run_stage, write, rows)
    assert code == 0
    for row, scored in zip(rows, table, strict=True):
        reward, values = world.gold(json.loads(row["metadata"]), row["response"])
        assert (scored["prompt_id"], scored["k"], scored["reward"]) == (row["prompt_id"], row["k"], reward)
        assert json.loads(scored["objectives"]) == values
        assert 0 <= reward <= 1
    assert manifest["counts"] == {"rows_in": 9, "rows_out": 9}
    assert manifest["metrics"]["mean"] == pytest.approx(sum(row["reward"] for row in table) / 9)


def test_the_worlds_best_answers_beat_empty_ones(tmp_path, run_stage, write, rollout):
    (request,) = world.prompts("evaluation", 1, 1)
    things = sorted(world.THINGS)[: world.NUMBERS[request["requests"]["count"]]]
    requests = {"count": request["requests"]["count"]}
    # With the count as the only request, the right number of things scores it in full, and nothing scores less.
    given = {"metadata": json.dumps(requests)}
    rows = [rollout("q", 0, f" {world.DEFAULT_JOINER} ".join(things), **given), rollout("q", 1, "", **given)]
    _, table, _ = verify(tmp_path, run_stage, write, rows)
    assert table[0]["reward"] == pytest.approx(1.0)
    assert json.loads(table[0]["objectives"]) == {"count": 1.0}
    assert table[1]["reward"] < table[0]["reward"]


def test_prompts_without_metadata_are_refused(tmp_path, run_stage, write, rollout, capsys):
    assert verify(tmp_path, run_stage, write, [rollout("q", 0, "a")])[0] == 2
    assert "has no metadata for the verifier 'world_gold'.\nHint: " in capsys.readouterr().out
