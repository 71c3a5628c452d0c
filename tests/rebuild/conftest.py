"""The tiny preset built by stand-ins in seconds, and what it takes to change copies of it and look at their plans."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.conftest import copy_checkout, jobs
from tests.rebuild.snake import snakemake

# A branch of the build that reads local files: an SFT policy and a run of its own, one DPO step.
FILES = """
run: talk
datasets: {talk: {kind: files, type: conversations, path: data/talk, pattern: "*.jsonl"}}
sft: {talker: {kind: train, base: world, dataset: talk, max_length: 128}}
runs:
  talk:
    sft: talker
    iterations: 1
    mix: [{dataset: annotations, pairing: as_given}]
    dpo: {batch_size: 32, max_length: 128}
"""


class Builds:
    """The finished stand-in build `made`, copies of it, and Snakemake in any of them."""

    def __init__(self, place: Path) -> None:
        self.place, self.made = place, place / "ouroboros"
        self.programs = place / "bin"
        self.programs.mkdir()
        python = self.programs / "python"
        standin = Path(__file__).with_name("standin.py")
        python.write_text(f'#!/bin/sh\nexec "{sys.executable}" -E -S "{standin}" "$@"\n')
        python.chmod(0o755)

    def copy(self) -> Path:
        """A copy with its times and with Snakemake's records."""
        target = self.place / uuid4().hex
        subprocess.run(["cp", "-a", self.made, target], check=True)
        return target

    def snakemake(
        self,
        checkout: Path,
        *targets: str,
        options: tuple[str, ...] = (),
        overlay: str = "",
        replace: bool = True,
        **environment: str,
    ) -> tuple[int, str]:
        """(exit code, what it said) of Snakemake with the stand-ins first on PATH; `overlay` is YAML."""
        said = self.place / f"{uuid4().hex}.txt"
        if overlay:
            file = said.with_suffix(".yaml")
            file.write_text(overlay)
            options = (*options, "--configfile", str(file))
        if replace and "-n" not in options:  # a changed build replaces trained weights, and would ask first
            options = (*options, "--config", "replace=true")
        environment = {"PATH": f"{self.programs}{os.pathsep}{os.environ['PATH']}", **environment}
        environment["SLURM_CONF"] = os.devnull  # a cluster on this machine is not asked
        code = snakemake(checkout, said, *options, "--", *targets, **environment)
        return code, said.read_text()

    def build(self, checkout: Path, *targets: str, **given: Any) -> list[str]:
        """The jobs that Snakemake runs, which must all end well."""
        code, said = self.snakemake(checkout, *targets, **given)
        assert code == 0, said
        return jobs(said)

    def plan(self, checkout: Path, *targets: str, options: tuple[str, ...] = (), overlay: str = "") -> set[str]:
        """The jobs that Snakemake would run."""
        planned = self.build(checkout, *targets, options=("-n", *options), overlay=overlay)
        assert len(planned) == len(set(planned))
        return set(planned)


@pytest.fixture(scope="session")
def builds(tmp_path_factory) -> Builds:
    """The tiny preset and the branch of local files, built by stand-ins."""
    found = Builds(tmp_path_factory.mktemp("standin"))
    copy_checkout(found.made)
    talk = found.made / "data" / "talk"
    talk.mkdir(parents=True)
    (talk / "a.jsonl").write_text('{"prompt": "Hello?", "response": "Yes."}\n')
    (talk / "b.jsonl").write_text('{"prompt": "And now?", "response": "No."}\n')
    found.build(found.made, "all")
    found.build(found.made, "iter1_policy", overlay=FILES)
    return found


@pytest.fixture(scope="session")
def side_by_side(request) -> Iterator[Callable]:
    """Two cases at once: side_by_side(function, name) starts `function` for every case `name` that was selected.

    Returns the futures by case. A case is the only parameter of that name of a test.
    """
    pool = ThreadPoolExecutor(2)

    def start(function: Callable, name: str) -> dict:
        params = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
        cases = dict.fromkeys(given[name] for given in params if name in given)
        return {case: pool.submit(function, case) for case in cases}

    yield start
    pool.shutdown(cancel_futures=True)
