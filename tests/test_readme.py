"""Every command of the README is run, in order, in a finished build."""

import re
import shutil
import sys

import pytest

from tests.conftest import ROOT, run

pytestmark = pytest.mark.build

# What cannot be run inside the suite, and why.
NOT_RUN = {
    "make demo": "it is what the build fixture did",
    "make rollout-env": "it has made the environment of the tests of vLLM",
    "make test": "it is this suite",
    "make test-long": "it is this suite and more",
    ". .venv/bin/activate": "the suite's own environment is active",
    "snakemake --profile slurm iter3_policy": "the next test and tests/slurm do",
}


def commands() -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#") and line not in NOT_RUN]


def test_every_command_of_the_readme_works(scratch_build):
    (scratch_build / ".venv").symlink_to(sys.prefix)  # what `make` activates
    found = commands()
    assert len(found) > 5
    for command in found:
        run(scratch_build, "bash", "-c", f"set -euo pipefail; {command}")


def test_the_command_for_a_cluster_plans_anywhere_and_says_what_it_lacks(checkout, tmp_path, monkeypatch):
    for name in ("bash", "env", "git", "sh", "which"):  # and no SLURM
        (tmp_path / name).symlink_to(shutil.which(name))
    monkeypatch.setenv("PATH", str(tmp_path))
    command = ("snakemake", "--profile", "slurm", "iter3_policy")
    planned = run(checkout, *command, "-n", "--quiet", "rules")
    assert planned.stderr.count("not ready to submit: SLURM is not on this machine: no `scontrol` on PATH\nHint: ") == 1
    assert "train_dpo" in planned.stdout + planned.stderr
    refused = run(checkout, *command, check=False)
    assert refused.returncode != 0
    assert "SLURM is not on this machine" in refused.stderr
    for ours in ("WorkflowError", 'File "', "Building DAG"):
        assert ours not in refused.stdout + refused.stderr
    assert not (checkout / "results").exists()


def test_every_file_is_named_in_the_readme():
    readme = (ROOT / "README.md").read_text()
    files = [*ROOT.glob("rules/*.smk"), *ROOT.glob("scripts/**/*.py")]
    files += [
        *ROOT.glob("envs/*"),
        *ROOT.glob("profiles/*/*.yaml"),
        *ROOT.glob("profiles/*.md"),
        *ROOT.glob("config/*.yaml"),
        *ROOT.glob("config/presets/*.yaml"),
    ]
    names = [str(file.relative_to(ROOT)) for file in files if file.name != "__init__.py"]
    assert [name for name in names if f"`{name}`" not in readme] == []
