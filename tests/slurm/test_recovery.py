"""What happens to a build when a cluster does what clusters do: time limits, preemption, memory, a cancelled build."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from scripts.lib.planning.config import merge
from tests.slurm.conftest import QUICK, SMALL, Build, accounted, ask

pytestmark = pytest.mark.long

# SFT takes a minute and a half of one fast core, in many steps: a time limit of a minute, SLURM's least, must not do.
LONG_SFT = merge(
    SMALL,
    {
        "datasets": {"demonstrations": {"size": 2000}},
        "sft": {"tiny": {"epochs": 20}},
        "runtime": {"device": "cpu", "checkpoint_minutes": 0.05},
    },
)
FIELDS = ("JobID", "Comment", "State", "Timelimit", "ReqMem")


def sft_jobs(build):
    return [job for job in accounted(*FIELDS, since=build.began) if "train_sft" in job["Comment"]]


def steps(build):
    """The optimizer steps that the training step has logged, after a 0."""
    log = build.results / "logs" / "sft" / "tiny" / "policy.log"
    lines = log.read_text().splitlines() if log.exists() else []
    return [0, *(int(line.split()[1].split("/")[0]) for line in lines if line.startswith("step "))]


def wait_for(what, seconds=240):
    """Poll until `what()` is true."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(1)
    return found


def running(rule, user="root"):
    """JobIDs of a rule's running jobs."""
    listed = ask("squeue", "-h", "-t", "RUNNING", "-o", "%i|%k").splitlines()
    return [line.split("|")[0] for line in listed if f"rule_{rule}" in line]


@pytest.fixture(scope="module")
def undisturbed(slurm, tmp_path_factory):
    """The SFT policy, made on this machine without any disturbance."""
    build = Build(tmp_path_factory.mktemp("undisturbed") / "build", LONG_SFT)
    code, output = build.run("sft", "--cores", "2")
    assert code == 0, output[-4000:]
    return build


@pytest.fixture
def prepared(make, undisturbed):
    """prepared(name, overlay, **site) → a Build in which only the SFT policy is still to be made."""

    def prepare(name, overlay, **site):
        build = make(name, overlay, **site)
        shutil.copytree(undisturbed.folder / ".snakemake", build.folder / ".snakemake")
        for part in ("base", "data"):
            shutil.copytree(undisturbed.results / part, build.results / part)
        return build

    return prepare


def assert_same_policy(build, undisturbed):
    """Nothing was lost and nothing done twice that shows: the same weights, byte for byte."""
    digests = [b.results / "sft" / "tiny" / "policy.sha256" for b in (build, undisturbed)]
    assert digests[0].read_bytes() == digests[1].read_bytes()
    log = (build.results / "logs" / "sft" / "tiny" / "policy.log").read_text()
    assert "continuing from" in log
    # The log is the last attempt's: it began after a checkpoint, not at the first step.
    assert steps(build)[0] == 0
    assert steps(build)[1] > 1


def test_a_job_killed_by_its_time_limit_goes_on_with_more_time(prepared, undisturbed):
    build = prepared("limit", merge(LONG_SFT, {"resources": {"train_sft": {"runtime": 1}}}))
    code, output = build.on_slurm("sft", "--retries", "3")
    assert code == 0, output[-4000:]
    states = [(job["State"], job["Timelimit"]) for job in sft_jobs(build)]
    assert states[0] == ("TIMEOUT", "00:01:00")
    assert states[1][1] == "00:02:00"
    assert states[-1][0] == "COMPLETED"
    assert_same_policy(build, undisturbed)


def test_a_preempted_job_is_requeued_by_slurm_and_goes_on(prepared, undisturbed):
    build = prepared("preempted", LONG_SFT, cpu_partition="low")
    process = build.start("--profile", "slurm", "sft", *QUICK)
    wait_for(lambda: steps(build)[-1] > 50)
    (job,) = running("train_sft")
    # Somebody more important wants every node.
    taken = ask(
        "sbatch",
        "--parsable",
        "-p",
        "cpu",
        "-A",
        "research",
        "-N",
        "2",
        "--exclusive",
        "-o",
        "/dev/null",
        "--wrap",
        "sleep 20",
    )
    wait_for(lambda: job not in running("train_sft"))
    wait_for(lambda: ask("squeue", "-h", "-j", job, "-o", "%T").strip() == "PENDING", 60)  # after COMPLETING
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output[-4000:]
    assert taken.strip().isdigit()
    jobs = sft_jobs(build)
    assert {entry["JobID"] for entry in jobs} == {job}  # SLURM's own requeue, not a second submission
    assert [entry["State"] for entry in jobs] == ["PREEMPTED", "COMPLETED"]
    assert_same_policy(build, undisturbed)


def test_a_job_whose_node_goes_down_is_started_again_and_goes_on(prepared, undisturbed):
    build = prepared("node", LONG_SFT)
    process = build.start("--profile", "slurm", "sft", *QUICK)
    wait_for(lambda: steps(build)[-1] > 50)
    (job,) = running("train_sft")
    node = ask("squeue", "-h", "-j", job, "-o", "%N").strip()
    ask("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    try:
        wait_for(lambda: job not in running("train_sft"))
    finally:
        # Refused if slurmd has reported for duty by itself meanwhile.
        subprocess.run(["scontrol", "update", f"nodename={node}", "state=resume"], timeout=30, check=False)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output[-4000:]
    jobs = sft_jobs(build)
    assert {entry["JobID"] for entry in jobs} == {job}
    assert [entry["State"] for entry in jobs] == ["NODE_FAIL", "COMPLETED"]
    assert_same_policy(build, undisturbed)


def test_a_job_out_of_memory_is_submitted_again_with_more(prepared, undisturbed):
    # Half of what training takes: SLURM kills it for that (JobAcctGatherParams=OverMemoryKill).
    build = prepared("memory", merge(LONG_SFT, {"resources": {"train_sft": {"mem_mb": 600}}}))
    code, output = build.on_slurm("sft", "--retries", "3")
    assert code == 0, output[-4000:]
    jobs = sft_jobs(build)
    assert [job["ReqMem"] for job in jobs] == [f"{600 * n}M" for n in range(1, len(jobs) + 1)]
    assert len(jobs) > 1
    assert {job["State"] for job in jobs[:-1]} <= {"FAILED", "OUT_OF_MEMORY", "CANCELLED by 0"}
    assert jobs[-1]["State"] == "COMPLETED"
    digests = [b.results / "sft" / "tiny" / "policy.sha256" for b in (build, undisturbed)]
    assert digests[0].read_bytes() == digests[1].read_bytes()


def test_a_cancelled_build_cancels_its_jobs_and_goes_on_later(prepared, undisturbed):
    build = prepared("cancelled", LONG_SFT)
    process = build.start("--profile", "slurm", "sft", *QUICK)
    wait_for(lambda: steps(build)[-1] > 50)
    os.kill(process.pid, signal.SIGINT)  # Ctrl-C
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    wait_for(lambda: not ask("squeue", "-h", "-o", "%i").split(), 60)
    (cancelled,) = sft_jobs(build)
    assert cancelled["State"].startswith("CANCELLED"), output[-2000:]
    assert not (build.results / "sft" / "tiny" / "policy.json").exists()
    code, output = build.on_slurm("sft")
    assert code == 0, output[-4000:]
    assert [job["State"].split()[0] for job in sft_jobs(build)] == ["CANCELLED", "COMPLETED"]
    assert_same_policy(build, undisturbed)


def ranks(folder):
    """Processes that train in a folder, on whatever node; nodes share the process table of this machine."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().split(b"\0")
            if (
                (entry / "cwd").readlink() == folder
                and command[1:3] == [b"-u", b"-m"]
                and b"scripts.train_sft" in command
            ):
                found.append(int(entry.name))
        except OSError:  # gone meanwhile
            continue
    return found


def test_a_rank_that_dies_on_one_node_ends_the_job_on_both(prepared):
    overlay = merge(LONG_SFT, {"resources": {"train_sft": {"nodes": 2, "processes": 1}}})
    build = prepared("rank", overlay)
    process = build.start("--profile", "slurm", "sft", "--retries", "0", *QUICK)
    wait_for(lambda: steps(build)[-1] > 1)
    (worker,) = [pid for pid in ranks(build.folder) if b"\0RANK=1\0" in Path(f"/proc/{pid}/environ").read_bytes()]
    os.kill(worker, signal.SIGKILL)
    output, _ = process.communicate(timeout=240)
    assert process.returncode != 0
    assert "Signal 9 (SIGKILL)" in output  # torchrun's own words, in the log that the profile shows
    wait_for(lambda: not ranks(build.folder), 60)
    assert not (build.results / "sft" / "tiny" / "policy.json").exists()


def test_job_arrays_build_the_same(make, slurm):
    build = make("array", SMALL)
    here = make("here", SMALL)
    code, output = here.run("iter1_rewards", "--cores", "2")
    assert code == 0, output[-4000:]
    code, output = build.on_slurm("iter1_rewards", "--slurm-array-jobs", "sample_rollouts,score_rollouts")
    assert code == 0, output[-4000:]
    jobs = accounted("JobID", "Comment", since=build.began)
    arrays = {job["Comment"].split("_wildcards")[0] for job in jobs if "_" in job["JobID"]}
    assert arrays == {"rule_sample_rollouts", "rule_score_rollouts"}
    tables = sorted(path.relative_to(here.results) for path in here.results.rglob("*.parquet"))
    assert len(tables) == 8  # data sets, prompts, and two shards each of rollouts and rewards
    assert [(build.results / path).read_bytes() for path in tables] == [
        (here.results / path).read_bytes() for path in tables
    ]
