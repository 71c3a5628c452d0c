"""The literal command on a real cluster: the same bytes as on one machine, and what SLURM was asked for."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from scripts.lib.planning.config import merge
from tests.slurm.conftest import FIELDS, NO_GPU, ONE_GPU, SMALL, Build, Request, accounted, ask, requests

# DPO on two nodes, one process each: one training through srun and torchrun.
TWO_NODES = merge(SMALL, {"resources": {"train_dpo": {"nodes": 2, "runtime": 15}}})


GOLD = [f"results/tiny/sft/tiny/rollouts/best_of_8/requests-1/rewards/gold/{shard}.parquet" for shard in (0, 1)]


@pytest.fixture(scope="module")
def built(slurm, tmp_path_factory):
    """(the build on this machine, the build through SLURM, what accounting says of it).

    SLURM makes what follows from the SFT policy; test_whole.py has it make everything.
    """
    folder = tmp_path_factory.mktemp("slurm")
    here = Build(folder / "here", SMALL)
    code, output = here.run("iter1_policy", *GOLD, "--cores", "2")
    assert code == 0, output[-4000:]
    there = Build(folder / "there", TWO_NODES)
    shutil.copytree(here.folder / ".snakemake", there.folder / ".snakemake")
    shutil.copytree(here.results, there.results)
    shutil.rmtree(there.results / "sft" / "tiny" / "rollouts")
    shutil.rmtree(there.results / "runs")
    code, output = there.on_slurm("iter1_policy", *GOLD)
    assert code == 0, output[-6000:]
    return here, there, accounted(*FIELDS, since=there.began)


def files(build, *patterns):
    return {
        path.relative_to(build.results).as_posix(): path.read_bytes()
        for pattern in patterns
        for path in build.results.rglob(pattern)
        if "work" not in path.parts and not path.name.endswith("run.json")
    }


def test_a_build_through_slurm_has_the_bytes_of_a_local_one(built):
    here, there, _ = built
    local = files(here, "*.parquet", "*.json", "*.safetensors", "*.sha256")
    remote = files(there, "*.parquet", "*.json", "*.safetensors", "*.sha256")
    assert local.keys() == remote.keys()
    different = {name for name in local if local[name] != remote[name]}
    # Two processes add numbers up in another order than one.
    assert {name for name in different if not name.startswith("runs/main/iter1/policy")} == set()
    assert "sft/tiny/rollouts/best_of_8/requests-1/1.parquet" in local


def test_two_nodes_trained_one_policy_not_two_copies(built):
    here, there, _ = built
    one, two = here.manifest("runs/main/iter1/policy"), there.manifest("runs/main/iter1/policy")
    assert two["metrics"]["steps"] == one["metrics"]["steps"]
    for key in ("first_loss", "last_loss"):
        assert two["metrics"][key] == pytest.approx(one["metrics"][key], abs=1e-5)
    for key in ("settings", "counts", "code"):
        assert two[key] == one[key]
    run = there.manifest("runs/main/iter1/policy.run")
    assert run["processes"] == 2
    weights = (load_file(b.results / "runs/main/iter1/policy/model.safetensors") for b in (here, there))
    for left, right in zip(*(sorted(tensors.items()) for tensors in weights)):
        torch.testing.assert_close(left[1], right[1], atol=1e-4, rtol=1e-3)


@pytest.mark.long
@pytest.mark.parametrize("sharding", ["zero2", "zero3"])
def test_deepspeed_spreads_one_model_over_two_nodes(built, tmp_path, sharding):
    here, there, _ = built
    spread = Build(tmp_path / sharding, merge(TWO_NODES, {"resources": {"train_dpo": {"sharding": sharding}}}))
    shutil.copytree(there.folder / ".snakemake", spread.folder / ".snakemake")
    shutil.copytree(there.results, spread.results)
    (spread.results / "runs/main/iter1/policy.json").unlink()
    code, output = spread.on_slurm("iter1_policy")
    assert code == 0, output[-6000:]
    one, two = here.manifest("runs/main/iter1/policy"), spread.manifest("runs/main/iter1/policy")
    for key in ("steps", "first_loss", "last_loss"):
        assert two["metrics"][key] == pytest.approx(one["metrics"][key], abs=1e-5)
    run = spread.manifest("runs/main/iter1/policy.run")
    assert (run["processes"], run["deepspeed"]["zero_optimization"]["stage"]) == (2, int(sharding[-1]))


def test_slurm_was_asked_for_what_each_step_needs(built):
    _, _, jobs = built
    assert requests(jobs) == {
        "sample_rollouts": {ONE_GPU},
        "score_rollouts": {ONE_GPU},
        "verify_rollouts": {NO_GPU},
        "score_reference": {ONE_GPU},
        "train_dpo": {Request("gpu", cpus="2", memory="4000M", gpus="2", nodes="2", limit="00:15:00")},
    }
    assert {job["State"] for job in jobs} == {"COMPLETED"}
    assert {job["Account"] for job in jobs} == {"research"}
    assert all("gres/gpu:h100" in job["AllocTRES"] for job in jobs if job["Partition"] == "gpu")


def test_a_person_can_find_an_iteration_by_its_comment(built):
    _, _, jobs = built
    comments = {job["Comment"] for job in jobs}
    assert "rule_train_dpo_wildcards_main_1" in comments
    assert "rule_sample_rollouts_wildcards_sft_tiny_best_of_8_requests-1_1" in comments


def test_bookkeeping_stayed_on_the_login_node(built):
    _, there, jobs = built
    assert not any("build_pairs" in job["Comment"] or "make_prompts" in job["Comment"] for job in jobs)
    assert there.manifest("sft/tiny/rollouts/best_of_8/requests-1/pairs/bt/best_worst.run")["host"] not in (
        *("node1", "node2"),
    )
    assert there.manifest("runs/main/iter1/policy.run")["host"] in ("node1", "node2")


def test_a_second_invocation_submits_nothing(built):
    _, there, _ = built
    before = accounted("JobID", since=there.began)
    code, output = there.on_slurm("iter1_policy")
    assert code == 0
    assert "Nothing to be done" in output
    assert accounted("JobID", since=there.began) == before


def test_a_step_that_fails_shows_its_own_message_and_where_its_logs_are(built):
    _, there, _ = built
    settings = {**TWO_NODES, "rewards": {"bt": {"max_length": 8}}}
    (there.folder / "overlay.yaml").write_text(json.dumps(settings))
    code, output = there.on_slurm("reward", "--retries", "0", "--config", "replace=true")
    assert code != 0
    assert "0 training and 0 held-out pairs fit max_length = 8.\nHint: raise it." in output
    assert "results/tiny/logs/reward/bt/model.log" in output
    assert ".snakemake/slurm_logs/rule_train_reward" in output
    assert ask("squeue", "-h", "-o", "%i") == ""
