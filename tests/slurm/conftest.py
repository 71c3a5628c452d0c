"""A real SLURM for the tests that ask for one, and builds through it. Whatever talks to SLURM has a time limit."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from tests.conftest import ROOT, copy_checkout
from tests.unit import test_cluster as cluster_tests

ASKED = "OUROBOROS_SLURM_TESTS"
# Small enough that a step is over in seconds; the computing device is left open, so that steps ask for GPUs.
SMALL = {
    "bases": {"world": {"texts": 256}},
    "datasets": {
        "demonstrations": {"size": 128},
        "annotations": {"size": 128},
        "annotations_heldout": {"size": 32},
    },
    "prompts": {"requests": {"size": 24, "shard_prompts": 12}, "heldout": {"size": 8}},
    "samplings": {"best_of_8": {"k": 4}},
    # As many as divide among two processes: otherwise some are taken twice, and the losses of one process differ.
    "pairings": {"best_worst": {"size": 16}},
    # The SFT term is a mean over the tokens of a micro-batch, so it differs a little with the number of processes.
    "runs": {"main": {"dpo": {"batch_size": 4, "loss": ["sigmoid"], "loss_weights": None}}},
    "runtime": {"device": "auto"},
    "resources": {"default": {"threads": 1, "mem_mb": 2000, "runtime": 10}},
}
SITE = {
    **cluster_tests.SITE,  # what up.sh makes
    "train_python": sys.executable,
}
# SLURM is asked often, since jobs are over in seconds; production asks after twenty seconds.
QUICK = ["--slurm-init-seconds-before-status-checks", "8", "--latency-wait", "10", "--jobs", "6"]
QUICK += ["--max-status-checks-per-second", "10"]
FIELDS = ("JobID", "Comment", "Partition", "Account", "ReqTRES", "Timelimit", "State", "AllocTRES", "Elapsed")


@pytest.fixture(scope="session")
def slurm():
    """A cluster of two nodes that this session starts and ends."""
    if not os.environ.get(ASKED):
        pytest.skip(f"starts a SLURM on this machine; set {ASKED}=1 to ask for it")
    for script in ("down.sh", "up.sh"):
        done = subprocess.run(
            ["bash", ROOT / "tests" / "slurm" / script], capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
    yield
    subprocess.run(["bash", ROOT / "tests" / "slurm" / "down.sh"], capture_output=True, timeout=120, check=False)


def ask(*command: str) -> str:
    """What a SLURM command prints."""
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout


def accounted(*fields: str, since: float) -> list[dict[str, str]]:
    """sacct's fields of every job that began after `since` (Unix time); of one that was requeued, every time it ran."""
    start = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(since))
    listed = ask("sacct", "-a", "-X", "-P", "-n", "--duplicates", "-S", start, "-o", ",".join(fields))
    return [dict(zip(fields, line.split("|"))) for line in listed.splitlines()]


class Request(NamedTuple):
    """What SLURM was asked for one job."""

    partition: str
    cpus: str = "1"
    memory: str = "2000M"
    gpus: str = "0"
    nodes: str = "1"
    limit: str = "00:10:00"


ONE_GPU, NO_GPU = Request("gpu", gpus="1"), Request("cpu")


def requests(jobs: list[dict[str, str]]) -> dict[str, set[Request]]:
    """rule → what was asked for its jobs, as accounting tells it."""
    asked: dict[str, set[Request]] = {}
    for job in jobs:
        rule = job["Comment"].removeprefix("rule_").split("_wildcards_")[0]
        tres = dict(part.split("=") for part in job["ReqTRES"].split(","))
        given = (tres["cpu"], tres["mem"], tres.get("gres/gpu", "0"), tres["node"], job["Timelimit"])
        asked.setdefault(rule, set()).add(Request(job["Partition"], *given))
    return asked


class Build:
    """A fresh copy of the checkout with its site filled in and one overlay, built by the profile or on this machine.

    With `as_cloned` the site stays as it comes. Programs in `first` hide those of the same name.
    """

    def __init__(self, folder: Path, overlay: dict, as_cloned: bool = False, first: Path | None = None, **site) -> None:
        self.folder = copy_checkout(folder)
        if not as_cloned:
            (folder / "profiles" / "slurm" / "site.yaml").write_text(yaml.safe_dump({**SITE, **site}))
        self.first = [str(first)] if first else []
        (folder / "overlay.yaml").write_text(json.dumps(overlay))
        self.results = folder / "results" / "tiny"
        self.began = time.time()
        self.started: list[subprocess.Popen] = []

    def start(self, *words: str) -> subprocess.Popen:
        """Snakemake, in a process group of its own as a shell would start it."""
        path = os.pathsep.join([*self.first, str(Path(sys.executable).parent), os.environ["PATH"]])
        process = subprocess.Popen(
            ["snakemake", *words, "--configfile", "overlay.yaml"],
            cwd=self.folder,
            env={**os.environ, "PATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def end(self) -> None:
        """Leave nothing running or queued behind a test that failed."""
        alive = [process for process in self.started if process.poll() is None]
        for process in alive:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if alive:
            ask("scancel", "--user=root")

    def run(self, *words: str, timeout: int = 900) -> tuple[int, str]:
        """(exit code, output) of Snakemake; what outlives the time limit is killed."""
        process = self.start(*words)
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            pytest.fail(f"snakemake {words} took more than {timeout} s\n{output[-4000:]}")
        return process.returncode, output

    def on_slurm(self, *words: str, timeout: int = 900) -> tuple[int, str]:
        """The literal command, with quicker polling."""
        return self.run("--profile", "slurm", *words, *QUICK, timeout=timeout)

    def manifest(self, tail: str) -> dict:
        """The manifest of an artifact beneath the results."""
        return json.loads((self.results / f"{tail}.json").read_text())


@pytest.fixture
def make(tmp_path):
    """make(name, overlay, **site) → a Build of its own."""
    builds = []

    def build(name, overlay, **site):
        builds.append(Build(tmp_path / name, overlay, **site))
        return builds[-1]

    yield build
    for made in builds:
        made.end()
