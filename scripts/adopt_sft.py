"""Adopts a base model that is already instruction-tuned as the SFT policy.

Its files are copied unchanged but for generation_config.json, which gets the tokens that end a turn
(scripts/lib/models/policy.py).
"""

import shutil
import sys
from pathlib import Path

from scripts.lib.kinds.sft import AdoptSft
from scripts.lib.stage import artifact, contract


def run(job: contract.Job[AdoptSft]) -> None:
    """Copy the base model's folder; its digests were verified when the stage started."""
    from scripts.lib.models import policy

    def copy(folder: Path) -> None:
        shutil.copytree(job.input("base"), folder, dirs_exist_ok=True, copy_function=shutil.copyfile)
        policy.settle(folder)

    artifact.write_model(job.output, copy)
    job.counts = {"files": sum(file.is_file() for file in job.output.rglob("*"))}
    job.note = f"{job.counts['files']} files copied from {job.input('base')}"


def main(argv: list[str] | None = None) -> int:
    """Command line; see `--help`."""
    return contract.execute("adopt_sft", run, AdoptSft, ("base",), argv)


if __name__ == "__main__":
    sys.exit(main())
