"""Killed at any moment and started again, a build ends with the artifacts of one that nothing disturbed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.conftest import copy_checkout, run

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


def longest_life(build) -> float:
    """Seconds after which a build is killed at the latest: a twentieth of what its steps take on this machine.

    Half of such a life goes into starting what the last kill has ended, so that twenty-five do not finish the build.
    """
    runs = (build / "results/tiny").rglob("*.run.json")
    return sum(json.loads(path.read_text())["seconds"] for path in runs) / 20


def build_with_kills(build, target: str, kills: int, longest: float, seed: int, record) -> None:
    """Run Snakemake, kill it `kills` times at random moments, and let it finish."""
    (build / "often.yaml").write_text(OFTEN)
    command = ("snakemake", target, "--configfile", "often.yaml")
    draw = random.Random(seed)
    started, orphaned = time.monotonic(), 0
    for number in range(kills):
        process = start(build, *command)
        after = draw.uniform(3, longest)
        try:
            process.wait(timeout=after)
            pytest.fail(f"the build ended ({process.returncode}) before kill {number + 1} of {kills}, seed {seed}")
        except subprocess.TimeoutExpired:
            orphans = draw.random() < 0.3
            orphaned += orphans
            kill(process, orphans)
        run(build, "snakemake", "--unlock", "--configfile", "often.yaml")
    run(build, *command)
    seconds = time.monotonic() - started
    record("kills", f"{kills} kills, {orphaned} of Snakemake alone, seed {seed}: {seconds:.0f} s until done")


def test_killed_five_times_in_the_reward_model_and_the_first_iteration(scratch_build, record_property):
    """Same seed, same bytes (on one machine, blueprint 11.9): reward model, rollouts, rewards, pairs, DPO."""
    before, longest = digests(scratch_build), longest_life(scratch_build)
    root = scratch_build / "results/tiny"
    for path in root.glob("sft/tiny/rollouts/best_of_8/**/*.*"):
        path.unlink()
    for artifact in ("runs/main/iter1/policy", "reward/bt/model"):
        for suffix in ("json", "sha256"):
            (root / f"{artifact}.{suffix}").unlink()
    build_with_kills(scratch_build, "iter1_policy", kills=5, longest=longest, seed=1, record=record_property)
    assert digests(scratch_build) == before
    assert not (root / "work").exists()
    # What follows stands on bytes that are the same, so nothing of it is made again.
    assert "Nothing to be done" in run(scratch_build, "snakemake", "-n", "all").stdout


@pytest.mark.long
def test_killed_twenty_five_times_over_the_whole_build(build, tmp_path, record_property):
    checkout = copy_checkout(tmp_path / "ouroboros")
    build_with_kills(checkout, "all", kills=25, longest=longest_life(build), seed=2, record=record_property)
    assert digests(checkout) == digests(build)
    assert not (checkout / "results/tiny/work").exists()
