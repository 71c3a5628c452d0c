"""How long Snakemake plans: this workflow at three sizes, beside a workflow of three rules.

    python -m tests.bench.plan_time [FOLDER]

FOLDER is a checkout with a finished tiny build (default: this one); its no-op run is timed too. The small workflow is
what a person would write instead for one step after another, so the ratio is what the graph costs.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from tests.conftest import ROOT, copy_checkout

SMALL = """
rule c:
    input: "b.txt"
    output: "c.txt"
    shell: "cp {input:q} {output:q}"
rule b:
    input: "a.txt"
    output: "b.txt"
    shell: "cp {input:q} {output:q}"
rule a:
    output: "a.txt"
    shell: "echo a > {output:q}"
"""
REPEATS = 3


def overlay(runs: int, iterations: int, shards: int) -> dict:
    """So many DPO runs that differ in beta, and training prompts in so many shards (the evaluation's in one)."""
    prompts = {"size": 10 * shards, "shard_prompts": 10}
    dpo = {"learning_rate": 2e-4, "epochs": 1, "batch_size": 32, "max_length": 128}
    run = {
        "sft": "tiny", "prompts": "requests", "reward": "bt", "sampling": "best_of_8", "pairing": "best_worst",
        "iterations": iterations,
    }  # fmt: skip
    named = {f"beta_{i}": {**run, "dpo": {**dpo, "beta": 0.1 * (i + 1)}} for i in range(runs)}
    return {"prompts": {"requests": prompts}, "runs": named}


def seconds(folder: Path, *arguments: str) -> tuple[float, str]:
    """(best of a few times, what was printed) of a Snakemake command."""
    best, output = float("inf"), ""
    for _ in range(REPEATS):
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "snakemake", *arguments], cwd=folder, capture_output=True, text=True, check=True
        )
        best, output = min(best, time.perf_counter() - started), done.stdout + done.stderr
    return best, output


def jobs(output: str) -> int:
    """The number of jobs in the table that a dry run prints."""
    totals = [line.split()[1] for line in output.splitlines() if line.startswith("total ")]
    return int(totals[0]) if totals else 0


def main() -> None:
    """Print a line per workflow: jobs, seconds, ratio to the small one."""
    built = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT
    with tempfile.TemporaryDirectory() as scratch:
        small, fresh = Path(scratch) / "small", Path(scratch) / "ouroboros"
        small.mkdir()
        (small / "Snakefile").write_text(SMALL)
        copy_checkout(fresh)
        base, output = seconds(small, "-n", "--quiet", "rules")
        print(f"{'three rules':<42} {jobs(output):>6} jobs {base:>7.2f} s", flush=True)
        for runs, iterations, shards in ((3, 3, 8), (10, 10, 64)):
            config = fresh / f"{runs}x{iterations}x{shards}.yaml"
            config.write_text(yaml.safe_dump(overlay(runs, iterations, shards)))
            took, output = seconds(fresh, "-n", "all", "--quiet", "rules", "--configfile", config.name)
            name = f"{runs} more runs x {iterations} iterations x {shards} shards"
            print(f"{name:<42} {jobs(output):>6} jobs {took:>7.2f} s  {took / base:.1f} x", flush=True)
        if (built / "results" / "tiny" / "report.html").exists():
            took, _ = seconds(built, "all")
            print(f"{'finished tiny build, nothing to do':<42} {0:>6} jobs {took:>7.2f} s  {took / base:.1f} x")


if __name__ == "__main__":
    main()
