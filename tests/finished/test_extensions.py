"""CONTRIBUTING.md's recipes hold: each extension works by the files that it names, and nothing else knows of it."""

import json
import re
import shutil

import polars as pl
import pytest

from tests.conftest import ROOT, planned_jobs, run
from tests.finished.extensions import EXTENSIONS

pytestmark = pytest.mark.build
T = "results/tiny"
MOST_FILES = {"a data set shape": 1, "a labeller": 4, "a benchmark": 1, "a training method": 4, "a setting": 2}
ROLLOUTS = f"{T}/sft/tiny/rollouts/best_of_8/requests-1"
MADE = {
    "a data set shape": f"{T}/data/faq.parquet",
    "a labeller": f"{ROLLOUTS}/rewards/likely/0.parquet",
    "a benchmark": f"{T}/sft/tiny/eval/short.parquet",
    "a training method": f"{T}/runs/mirror/iter1/policy.json",
    "a setting": f"{ROLLOUTS}/pairs/bt/short_pairs.parquet",
}
OVERLAYS = [f"{name.replace(' ', '_')}.yaml" for name in EXTENSIONS]


def test_an_extension_touches_no_more_files_than_contributing_says():
    page = (ROOT / "CONTRIBUTING.md").read_text()
    for name, extension in EXTENSIONS.items():
        assert len(extension.files) <= MOST_FILES[name], name
        for file in extension.files:
            kind = re.sub(r"[^/]+\.py$", "", file) if "NAME" not in file else file
            assert file in page or kind in page, (name, file)


@pytest.fixture(scope="module")
def extended(build, tmp_path_factory):
    """A copy of the finished build with all five extensions and their overlays; all are made in one go."""
    folder = tmp_path_factory.mktemp("extended") / "ouroboros"
    shutil.copytree(build, folder, symlinks=True)
    for name, extension in EXTENSIONS.items():
        extension.apply(folder)
        (folder / f"{name.replace(' ', '_')}.yaml").write_text(extension.overlay)
    (folder / "faq.jsonl").write_text(
        '{"q": "Name a colour", "a": "red"}\n{"q": "no answer"}\n{"q": "Count", "a": "one"}\n'
    )
    kept = planned_jobs(run(folder, "snakemake", "-n", "-p").stdout)
    # A method changes train_dpo.py, so weights that DPO has trained are made again.
    run(folder, "snakemake", *MADE.values(), "--configfile", *OVERLAYS, "--config", "replace=true")
    return folder, kept


def manifest(folder, path):
    return json.loads((folder / re.sub(r"\.(parquet|json)$", ".json", path)).read_text())


def test_extensions_rebuild_only_the_stage_whose_script_one_of_them_changed(extended):
    # The new key of pairings changes the settings of every pairing, and build_pairs.py is edited: pairs and below.
    assert {job["rule"] for job in extended[1]} == {
        "build_pairs", "score_reference", "train_dpo", "sample_rollouts", "score_rollouts", "verify_rollouts",
        "score_logprobs", "evaluate", "build_report", "all",
    }  # fmt: skip
    made = {path for job in extended[1] for path in job["output"]}
    assert not [path for path in made if path.startswith((f"{T}/data", f"{T}/prompts", f"{T}/reward", f"{T}/base"))]
    assert not [path for path in made if path.startswith((f"{T}/runs/offline/iter1/policy", f"{T}/runs/raft"))]
    assert f"{T}/sft/tiny/policy" not in made


def test_all_extensions_are_made(extended):
    folder, _ = extended
    faq = manifest(folder, MADE["a data set shape"])
    assert faq["counts"] == {"rows_in": 3, "rows_out": 2, "dropped_malformed": 1}
    assert " data.adapters.faq:" in faq["code"] and " data.adapters.nectar:" not in faq["code"]
    likely = manifest(folder, MADE["a labeller"])
    assert likely["stage"] == "weigh_rollouts"
    assert [entry["path"] for entry in likely["inputs"]["scorer"]] == ["runs/raft/iter1/policy"]
    rewards = pl.read_parquet(folder / MADE["a labeller"])
    assert rewards.height == likely["counts"]["rows_out"] == likely["counts"]["rows_in"] > 0
    assert rewards["reward"].max() < 0
    short = manifest(folder, MADE["a benchmark"])
    assert 0 <= short["metrics"]["sampled"]["short"] <= 1
    assert " benchmarks.brevity:" in short["code"]
    mirror = manifest(folder, MADE["a training method"])
    assert mirror["stage"] == "train_imitation" and mirror["counts"]["rows_trained"] == 32
    pairs = pl.read_parquet(folder / MADE["a setting"])
    assert pairs.height and max(map(len, [*pairs["chosen_ids"], *pairs["rejected_ids"]])) <= 9


def test_on_a_gpu_the_new_stages_ask_for_one(extended, tmp_path):
    folder, _ = extended
    cuda = tmp_path / "cuda.yaml"
    cuda.write_text("runtime: {device: cuda}\n")
    again = [MADE["a labeller"], MADE["a training method"]]
    said = run(folder, "snakemake", "-n", "-p", "-f", *again, "--configfile", *OVERLAYS, str(cuda)).stdout
    asked = {job["rule"]: job["resources"].get("gpu") for job in planned_jobs(said)}
    assert asked == {"weigh_rollouts": "1", "train_imitation": "1"}
    launched = [job["shell"] for job in planned_jobs(said)]
    assert all(" scripts.lib.stage.launch --nodes 1 --processes 1 --gpus 1 " in words for words in launched)


def test_audit_finds_that_they_agree(extended):
    folder, _ = extended
    said = run(folder, "snakemake", "audit", "--configfile", *OVERLAYS, check=False).stdout
    told = [line for line in said.splitlines() if any(path.rsplit(".", 1)[0] in line for path in MADE.values())]
    assert told == []  # only what the new key of pairings changed differs
    assert re.search(r"\d+ of \d+ artifacts differ from the plan", said)


def test_lineage_reaches_the_policy_that_weighs(extended):
    folder, _ = extended
    said = run(folder, "python", "-m", "scripts.lineage", MADE["a labeller"]).stdout
    assert "weigh_rollouts" in said and "runs/raft/iter1/policy" in said and "base/world/model" in said


def test_prune_keeps_weights_that_a_new_labeller_still_needs(extended):
    """`judged` weighs by raft's policy: with its rewards deleted, that policy may not go."""
    folder, _ = extended
    keep = folder / "keep.yaml"
    keep.write_text("runs: {raft: {iterations: 2, keep: last}}\n")
    rewards = folder / MADE["a labeller"]
    hidden = rewards.rename(rewards.with_suffix(".hidden"))
    said = run(folder, "snakemake", "prune", "--configfile", *OVERLAYS, str(keep)).stdout
    hidden.rename(rewards)
    (line,) = [line for line in said.splitlines() if line.startswith("left   runs/raft/iter1")]
    assert "has yet to be made from them" in line
    assert (folder / f"{T}/runs/raft/iter1/policy").is_dir()


def test_make_plan_tells_of_them(extended):
    folder, _ = extended
    options = ("--configfile", *OVERLAYS, "--config", "run=judged")
    said = run(folder, "python", "-m", "scripts.show_plan", "iter1_policy", *options).stdout
    assert re.search(r"^judged\n  train_dpo +1$", said, re.MULTILINE), said
    (folder / MADE["a labeller"]).rename(folder / "rewards.hidden")
    again = run(folder, "python", "-m", "scripts.show_plan", "iter1_rewards", *options).stdout
    (folder / "rewards.hidden").rename(folder / MADE["a labeller"])
    assert re.search(r"^  weigh_rollouts +1$", again, re.MULTILINE), again
    assert re.search(r"^  weigh_rollouts: \d+ MiB \(.*weights 1\) on one process; 576k tokens$", again, re.MULTILINE), (
        again
    )
