"""Dry runs of the presets, each made once for all tests that read it."""

from functools import cache
from pathlib import Path

import pytest

from tests.conftest import ROOT, copy_checkout, run
from tests.unit.test_cluster import SITE as NO_ENVIRONMENTS

PRESETS = ["tiny", *sorted(path.stem for path in (ROOT / "config" / "presets").glob("*.yaml"))]
PROFILES = {"none": (), "gpu": ("--profile", "profiles/gpu"), "slurm": ("--profile", "slurm")}
SITE = {**NO_ENVIRONMENTS, "rollout_python": "/envs/rollout/bin/python"}


@pytest.fixture(scope="session")
def site_filled_in(tmp_path_factory) -> Path:
    """A checkout whose site is filled in, with something in the folder that a preset reads."""
    folder = copy_checkout(tmp_path_factory.mktemp("site") / "ouroboros")
    lines = [f"{key}: {'null' if value is None else value}\n" for key, value in SITE.items()]
    (folder / "profiles" / "slurm" / "site.yaml").write_text("".join(lines))
    data = folder / "data" / "hh_rlhf"
    data.mkdir(parents=True)
    (data / "helpful-base.test.jsonl").write_text('{"chosen": "", "rejected": ""}\n')
    return folder


@pytest.fixture(scope="session")
def dry_run(site_filled_in):
    """What Snakemake prints of `all` for a preset under a profile: dry_run(preset, profile) → the finished process."""

    @cache
    def plan(preset: str, profile: str):
        files = () if preset == "tiny" else ("--configfile", f"config/presets/{preset}.yaml")
        return run(
            site_filled_in,
            "env",
            "SLURM_CONF=/dev/null",
            "snakemake",
            "-n",
            "-p",
            *PROFILES[profile],
            *files,
            "--",
            "all",
        )

    return plan
