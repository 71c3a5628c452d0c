"""A fresh clone on a cluster: the user's own line, a controller that fails, and the check of the site."""

import os
import signal
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.slurm.conftest import QUICK, SMALL, accounted, ask
from tests.slurm.test_recovery import running, wait_for

TABLE = "results/tiny/data/demonstrations.parquet"
# The first answer of the controller never comes; the second job arrives all the same; then all is well.
SBATCH = """#!/bin/sh
echo try >> {folder}/tries
case $(wc -l < {folder}/tries) in
1) ;;
2) /usr/bin/sbatch "$@" >/dev/null ;;
*) exec /usr/bin/sbatch "$@" ;;
esac
echo "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation" >&2
exit 1
"""
SCANCEL = """#!/bin/sh
mkdir {folder}/cancelled && {{ echo "scancel: error: Unable to contact slurm controller" >&2; exit 1; }}
exec /usr/bin/scancel "$@"
"""


@pytest.fixture
def failing(tmp_path):
    """failing(name=script): a folder of programs that fail first and then do what SLURM's own do."""
    folder = tmp_path / "failing"
    folder.mkdir()

    def write(**scripts):
        for name, script in scripts.items():
            (folder / name).write_text(script.format(folder=folder))
            (folder / name).chmod(0o755)
        return folder

    return write


def test_a_fresh_clone_builds_and_a_failed_submission_is_tried_again_but_nothing_is_submitted_twice(
    slurm, make, failing
):
    build = make("clone", SMALL, as_cloned=True, first=failing(sbatch=SBATCH))
    code, output = build.on_slurm(TABLE)
    assert code == 0, output[-4000:]
    assert output.count("SLURM: steps without a GPU in cpu (") == 1
    assert output.count("rule_curate_data_wildcards_demonstrations is tried again in") == 2
    (job,) = accounted("JobID", "Comment", "Partition", "Account", "State", since=build.began)
    assert f"rule_curate_data_wildcards_demonstrations had arrived as job {job.pop('JobID')}" in output
    assert job == {
        "Comment": "rule_curate_data_wildcards_demonstrations", "Partition": "cpu", "Account": "research",
        "State": "COMPLETED",
    }  # fmt: skip
    assert "cancelled what this build left" not in output


def test_a_submission_that_is_wrong_fails_at_once_and_leaves_nothing(slurm, make):
    build = make("wrong", SMALL, as_cloned=True)
    code, output = build.on_slurm(TABLE, "--set-resources", "curate_data:constraint=nonsense", "--retries", "0")
    assert code != 0
    assert "Invalid feature specification" in output
    assert "is tried again" not in output
    assert ask("squeue", "-h", "-o", "%i") == ""


def test_what_a_build_that_breaks_leaves_in_the_queue_is_cancelled(slurm, make, failing):
    build = make("broken", SMALL, as_cloned=True, first=failing(scancel=SCANCEL))
    process = build.start("--profile", "slurm", "results/tiny/base/world/model.sha256", *QUICK)
    wait_for(lambda: running("make_base"), 60)
    (job,) = running("make_base")
    os.kill(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "Unable to cancel jobs with scancel" in output  # Snakemake itself gives up
    assert f"cancelled what this build left in the queue: jobs {job}\n" in output
    wait_for(lambda: not running("make_base"), 60)


def test_the_site_is_checked_by_a_job_in_each_partition(slurm, tmp_path):
    site, auto = tmp_path / "site.yaml", '{"runtime": {"device": "auto"}}'

    def check(text):
        site.write_text(text)
        words = [sys.executable, "-m", "scripts.check_site", "--site", str(site), "--config", auto]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
        return done.returncode, done.stdout, done.stderr

    code, said, _ = check("gpu_partition: gpu\n")
    assert code == 0, said
    assert "accounts: research, root\n" in said
    assert [line.split(": job")[0] for line in said.splitlines() if " ran on node" in line] == ["cpu", "gpu"]
    assert "gpu_partition = 'gpus': you have no such partition" in check("gpu_partition: gpus\n")[2]
    code, said, _ = check("train_python: /nowhere/python\n")
    assert code == 2
    assert "cpu: job " in said and "/nowhere/python: not found" in said
