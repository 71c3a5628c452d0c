"""Start a step's processes: one, several on a node by torchrun, or several nodes by srun and torchrun.

    python -m scripts.lib.stage.launch --nodes 2 --processes 8 --gpus 8 --threads 64 --granted scripts.train_dpo …

The number of processes is what was asked for, and nothing that the environment says of processes counts (ranks.py).
Each is told it by torchrun and the trainer holds it against its own (models/training.py). A rank that dies takes the
others down: torchrun those of its node, srun the other nodes. Outside a cluster the GPUs of one machine are handed out
by slots (scripts/lib/stage/slots.py).
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from scripts.lib.stage import ranks, slots

# Where the ranks meet: a port of the first node, by the job's number, so that two jobs on a node do not meet.
FIRST_PORT, PORTS = 20_000, 10_000


def torchrun(
    processes: int, stage: list[str], nodes: int = 1, node: int = 0, head: str = "", job: int = 0
) -> list[str]:
    """torchrun's command on one node; over several nodes `head` is the first one's name and `node` this one's rank."""
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    if nodes == 1:
        words += ["--standalone"]
    else:
        words += ["--nnodes", str(nodes), "--node-rank", str(node), "--master-addr", head]
        words += ["--master-port", str(FIRST_PORT + job % PORTS)]
    # After `--`, or torchrun would take a stage's --start for its own --start-method.
    return [*words, "--module", "--", *stage]


def srun(nodes: int, gpus: int, threads: int, command: list[str]) -> list[str]:
    """srun's command that starts `command` once on every node of the job, with all that the job was granted there."""
    words = ["srun", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", f"--cpus-per-task={threads}"]
    words += ["--mem=0", "--kill-on-bad-exit=1", "--wait=0", "--export=ALL"]
    return [*words, *([f"--gres=gpu:{gpus}"] if gpus else []), *command]


def head_node(listing: str) -> str:
    """The first host of SLURM's compressed list, such as gpu[03-06,11]."""
    shown = subprocess.run(
        ["scontrol", "show", "hostnames", listing], check=True, capture_output=True, encoding="utf-8"
    )
    return shown.stdout.split()[0]


def not_granted(nodes: int, gpus: int, environment: Mapping[str, str]) -> str:
    """What SLURM gave otherwise than asked, in words; empty where all is right or SLURM does not say.

    Processes are counted from what was asked: with fewer GPUs several would share one, with more some would idle.
    """
    listed = environment.get("CUDA_VISIBLE_DEVICES")
    asked_and_given = {
        "GPUs on this node": (gpus, len(listed.split(",")) if listed and gpus else None),
        "nodes": (nodes, int(environment["SLURM_NNODES"]) if "SLURM_NNODES" in environment else None),
    }
    wrong = [
        f"{asked} {what} were asked for, {given} granted"
        for what, (asked, given) in asked_and_given.items()
        if given not in (None, asked)
    ]
    return "; ".join(wrong)


def main(argv: list[str] | None = None) -> int:
    """Become the step's process, or start its processes; never returns where it becomes it."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.lib.stage.launch", description=(__doc__ or "").split("\n")[0], allow_abbrev=False
    )
    parser.add_argument("--nodes", type=int, default=1, help="nodes of the job")
    parser.add_argument("--processes", type=int, default=1, help="processes on each node")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs of each node")
    parser.add_argument("--threads", type=int, default=1, help="cores of each node")
    parser.add_argument("--granted", action="store_true", help="SLURM has granted all this to the job")
    parser.add_argument("--on-node", action="store_true", help="this is srun's task on one of several nodes")
    parser.add_argument("stage", nargs=argparse.REMAINDER, help="the stage's module and its arguments")
    args = parser.parse_args(argv)
    ranks.forget(os.environ)
    if args.granted and (args.on_node or args.nodes == 1) and (wrong := not_granted(args.nodes, args.gpus, os.environ)):
        print(f"{wrong}\nHint: compare `resources` in config with what the partition gives.", file=sys.stderr)
        return 2
    if args.on_node:
        node, head = int(os.environ["SLURM_NODEID"]), head_node(os.environ["SLURM_STEP_NODELIST"])
        command = torchrun(args.processes, args.stage, args.nodes, node, head, int(os.environ["SLURM_JOB_ID"]))
    elif args.nodes > 1:
        if not args.granted:
            message = f"{args.nodes} nodes are asked for outside a SLURM job\nHint: use --profile slurm, or one node."
            print(message, file=sys.stderr)
            return 2
        sizes = [f"--{name}={getattr(args, name)}" for name in ("nodes", "processes", "gpus", "threads")]
        again = [sys.executable, "-m", "scripts.lib.stage.launch", "--granted", "--on-node", *sizes, *args.stage]
        command = srun(args.nodes, args.gpus, args.threads, again)
    else:
        if args.gpus and not args.granted:
            slots.take(args.gpus)
        command = [sys.executable, "-m", *args.stage] if args.processes == 1 else torchrun(args.processes, args.stage)
    # Snakemake gives every process the threads of the whole job.
    for library in ("OMP", "MKL", "OPENBLAS"):
        os.environ[f"{library}_NUM_THREADS"] = str(max(1, args.threads // args.processes))
    if args.on_node and "TMPDIR" in os.environ:
        Path(os.environ["TMPDIR"]).mkdir(parents=True, exist_ok=True)  # the first node has made only its own
    os.environ[ranks.LAUNCHER] = str(os.getpid())  # torchrun's too, as this process becomes it
    sys.stderr.flush()
    os.execvp(command[0], command)  # noqa: S606


if __name__ == "__main__":
    sys.exit(main())
