"""Killed at any moment and started again, a build ends with the artifacts of one that nothing disturbed."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.conftest import run

pytestmark = pytest.mark.build

# Everything that is finished is saved at once, so that even a step of seconds has something to go on from.
OFTEN = "runtime: {checkpoint_minutes: 0}\n"


def digests(build) -> dict[str, bytes]:
    """Bytes of every table, manifest, list of weight digests and the report."""
    root = build / "results/tiny"
    found = [path for kind in ("*.parquet", "*.sha256", "*.json", "report.html") for path in root.rglob(kind)]
    return {str(path.relative_to(root)): path.read_bytes() for path in found if not path.name.endswith(".run.json")}


def start(build, *command) -> subprocess.Popen:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.Popen(
        command,
        cwd=build,
        env={**os.environ, "PATH": path, "PYTHONDONTWRITEBYTECODE": ""},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def kill(process: subprocess.Popen, orphans: bool) -> None:
    """SIGKILL for Snakemake and, unless its steps are to be left as orphans, for everything beneath it."""
    tree = [] if orphans else psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    for child in tree:
        try:
            child.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()


def build_with_kills(build, target: str, kills: int, longest: float, seed: int, record, begin) -> None:
    """Run Snakemake, kill it `kills` times at random moments, and let it finish with the bytes it had.

    `begin` removes what is to be built. A fast machine may be done before all kills: then it begins again.
    """
    before = digests(build)
    begin()
    (build / "often.yaml").write_text(OFTEN)
    command = ("snakemake", target, "--configfile", "often.yaml")
    draw = random.Random(seed)
    started, orphaned, killed = time.monotonic(), 0, 0
    while killed < kills:
        process = start(build, *command)
        try:
            assert process.wait(timeout=draw.uniform(3, longest)) == 0
            assert digests(build) == before
            begin()
        except subprocess.TimeoutExpired:
            orphans = draw.random() < 0.3
            orphaned, killed = orphaned + orphans, killed + 1
            kill(process, orphans)
            run(build, "snakemake", "--unlock", "--configfile", "often.yaml")
    run(build, *command)
    assert digests(build) == before
    seconds = time.monotonic() - started
    record("kills", f"{kills} kills, {orphaned} of Snakemake alone, seed {seed}: {seconds:.0f} s until done")


def test_killed_five_times_in_the_reward_model_and_the_first_iteration(scratch_build, record_property):
    """Same seed, same bytes (on one machine, blueprint 11.9): reward model, rollouts, rewards, pairs, DPO."""
    root = scratch_build / "results/tiny"

    def begin() -> None:
        for path in root.glob("sft/tiny/rollouts/best_of_8/requests-1/**/*.*"):
            path.unlink()
        for artifact in ("runs/main/iter1/policy", "reward/bt/model"):
            for suffix in ("json", "sha256"):
                (root / f"{artifact}.{suffix}").unlink()

    build_with_kills(scratch_build, "iter1_policy", 5, longest=25, seed=1, record=record_property, begin=begin)
    assert not (root / "work").exists()
    # What follows stands on bytes that are the same, so nothing of it is made again.
    assert "Nothing to be done" in run(scratch_build, "snakemake", "-n", "all").stdout


@pytest.mark.long
def test_killed_twenty_five_times_over_the_whole_build(scratch_build, record_property):
    root = scratch_build / "results/tiny"

    def begin() -> None:
        shutil.rmtree(root)

    build_with_kills(scratch_build, "all", 25, longest=28, seed=2, record=record_property, begin=begin)
    assert not (root / "work").exists()
