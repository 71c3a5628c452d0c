"""The tiny preset through SLURM, from a fresh clone: trained there, with the bytes of a local build."""

import pytest

from tests.slurm.conftest import FIELDS, Request, accounted, requests

pytestmark = pytest.mark.long
ASKED = Request("cpu", memory="3000M", limit="00:20:00")


def test_the_tiny_preset_through_slurm_has_the_bytes_of_a_local_build(slurm, make, build):
    there = make("whole", {}, as_cloned=True)
    code, output = there.on_slurm("iter3_policy", timeout=3000)
    assert code == 0, output[-4000:]
    asked = requests(accounted(*FIELDS, since=there.began))
    assert asked == {rule: {ASKED} for rule in asked}
    assert set(asked) == {
        *("curate_data", "make_base", "train_sft", "train_reward", "sample_rollouts", "score_rollouts"),
        *("score_reference", "train_dpo"),
    }
    local = build / "results" / "tiny"
    made = [path for path in there.results.rglob("*") if path.suffix in (".parquet", ".json", ".safetensors")]
    compared = 0
    for path in made:
        if path.name.endswith("run.json") or "work" in path.relative_to(there.results).parts:
            continue
        assert path.read_bytes() == (local / path.relative_to(there.results)).read_bytes(), path
        compared += 1
    assert compared > 60
