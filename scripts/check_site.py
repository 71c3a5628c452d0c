"""What `snakemake --profile slurm` would ask of this cluster, and one job of a second in each partition to try it.

Each job looks for this checkout and starts the interpreter of the training environment; it asks for a GPU where steps
do. Prints what SLURM says of the cluster, what the site's file makes of it, and what became of the jobs.
"""

import argparse
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from scripts.lib.kinds.config import Config
from scripts.lib.planning import cluster, config, slurm
from scripts.lib.stage.errors import ConfigError

SECONDS_BETWEEN, SECONDS_TO_ANSWER = 2, 120
WAITING = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "REQUEUED", "SUSPENDED")


def main(argv: list[str] | None = None) -> int:
    """Print what was found; 0 where every job ran, 2 otherwise."""
    parser = argparse.ArgumentParser(prog="python -m scripts.check_site", description=__doc__)
    parser.add_argument("--site", type=Path, default=Path("profiles/slurm/site.yaml"), help="the site's file")
    parser.add_argument("--configfile", nargs="*", type=Path, default=[], help="a preset, overlays; as for Snakemake")
    parser.add_argument("--config", default="{}", help="JSON: settings that override them")
    parser.add_argument("--seconds", type=int, default=600, help="how long a job may wait for its turn")
    args = parser.parse_args(argv)
    try:
        settings = config.load(*args.configfile, said=settings_of(args.config))
        site = cluster.read_site(args.site, conda=False)
        has = slurm.ask()
        print("partitions:", *has.partitions.values(), sep="\n  ")
        print(f"accounts: {', '.join(has.accounts.names) or 'none'}")
        site = cluster.settle(site, has, settings)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    print(*cluster.in_words(site, has, settings), sep="\n")
    jobs = {partition: submit(site, settings, partition, gpus) for partition, gpus in used(site, settings).items()}
    ran = [outcome(partition, job, args.seconds) for partition, job in jobs.items()]
    return 0 if all(ran) else 2


def settings_of(text: str) -> dict[str, Any]:
    """The settings of --config. Raises ConfigError for text that is no JSON object."""
    try:
        said = json.loads(text)
    except ValueError:
        said = None
    if not isinstance(said, dict):
        raise ConfigError(f'--config {text}: must be a JSON object\nHint: write such as \'{{"run": "main"}}\'.')
    return said


def used(site: cluster.Site, settings: Config) -> dict[str, int]:
    """Partition → GPUs that a trial there asks for: one if a step on GPUs goes there."""
    partitions = {site["cpu_partition"]: 0}
    if any(cluster.needs(settings, rule).gpus for rule in cluster.computing()):
        partitions[site["gpu_partition"]] = 1
    return partitions


def submit(site: cluster.Site, settings: Config, partition: str, gpus: int) -> str:
    """Submit a trial; returns its number, or what sbatch said instead."""
    log = Path(".snakemake/check_site")
    log.mkdir(parents=True, exist_ok=True)
    python = shlex.quote(cluster.interpreter(settings, site))
    trial = f"sleep 1; test -e Snakefile || {{ echo no Snakefile in $PWD; exit 1; }}; {python} --version"
    words = ["sbatch", "--parsable", "--job-name", "check_site", "--output", f"{log}/%j.log", "--time", "1"]
    words += ["--mem", "200", "--partition", partition, *(["--gres", cluster.gres(gpus, site)] if gpus else [])]
    words += [*(["--account", site["account"]] if site["account"] else []), "--wrap", trial]
    try:
        done = subprocess.run(words, capture_output=True, encoding="utf-8", timeout=SECONDS_TO_ANSWER, check=False)
    except subprocess.TimeoutExpired:
        return f"sbatch did not answer within {SECONDS_TO_ANSWER} s; look at `scontrol ping`"
    return done.stdout.strip().split(";")[0] if done.returncode == 0 else done.stderr.strip()


def outcome(partition: str, job: str, seconds: int) -> bool:
    """Wait for a trial, print what became of it, and say whether it ran; one that waits too long is cancelled."""
    if not job.isdigit():
        print(f"{partition}: not accepted: {job}")
        return False
    give_up = time.monotonic() + seconds
    while (said := status(job)).get("JobState", "PENDING") in WAITING and time.monotonic() < give_up:
        time.sleep(SECONDS_BETWEEN)
    state, node = said.get("JobState", "PENDING"), said.get("NodeList", "no node")
    log = Path(".snakemake/check_site") / f"{job}.log"
    if state in WAITING:
        subprocess.run(["scancel", job], timeout=120, check=False)
        reason = said.get("Reason", "no answer")
        print(f"{partition}: job {job} is {state} after {seconds} s ({reason}) and was cancelled")
    elif state == "COMPLETED":
        log.unlink(missing_ok=True)
        print(f"{partition}: job {job} ran on {node}")
    else:
        logged = log.read_text(encoding="utf-8", errors="replace").strip() if log.exists() else "no log"
        print(f"{partition}: job {job} {state} on {node}: {logged}")
    return state == "COMPLETED"


def status(job: str) -> dict[str, str]:
    """What SLURM says of a job, by field; nothing where it does not answer."""
    command = ["scontrol", "--oneliner", "show", "job", job]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=120, check=False)
    return slurm.fields(done.stdout)


if __name__ == "__main__":
    sys.exit(main())
