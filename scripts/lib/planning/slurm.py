"""What a SLURM cluster says of itself: partitions, their largest nodes and GPUs, and the accounts of a person.

`ask` runs SLURM's own commands; everything else here is a function of their text.
"""

import contextlib
import getpass
import re
import shutil
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from scripts.lib.stage.errors import ConfigError

PARTITIONS = ["scontrol", "--oneliner", "show", "partition"]
NODES = ["scontrol", "--oneliner", "show", "node"]
# A busy controller answers late or not at all; before jobs are submitted, it is asked again before it counts as silent.
SECONDS_TO_ANSWER, TRIES, SECONDS_BETWEEN = 20, 3, 5


@dataclass(frozen=True)
class Partition:
    """What one job may have of a partition's nodes; None is no limit. `gpus`: type ("" if untyped) → most on a node."""

    name: str
    default: bool = False
    minutes: int | None = None
    mem_mb: int | None = None
    cpus: int = 0
    gpus: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        parts = [
            f"{self.mem_mb} MiB" if self.mem_mb else "any memory",
            f"{self.cpus} cores" if self.cpus != 1 else "1 core",
        ]
        parts += [f"{number} {name or 'of any type'}" for name, number in self.gpus.items()]
        parts += [f"{self.minutes} min" if self.minutes else "any time"]
        return f"{self.name} ({', '.join(parts)})"


@dataclass(frozen=True)
class Accounts:
    """The accounts that a person may charge, and the one that is charged if none is named."""

    names: tuple[str, ...] = ()
    default: str | None = None


@dataclass(frozen=True)
class Cluster:
    """What a cluster has for one person: partitions that are up and open to it, by name, and its accounts."""

    partitions: dict[str, Partition]
    accounts: Accounts = Accounts()


def ask(tries: int = TRIES) -> Cluster:
    """What the cluster says. Raises ConfigError where there is none, or where it does not answer."""
    if not shutil.which("scontrol"):
        raise ConfigError(
            "SLURM is not on this machine: no `scontrol` on PATH\n"
            "Hint: start on a login node of the cluster (perhaps `module load slurm`), or leave out --profile slurm."
        )
    open_to, nodes = _answer(PARTITIONS, tries), _answer(NODES, tries)
    accounts = Accounts()
    with contextlib.suppress(ConfigError, FileNotFoundError):  # accounting may be down, and some clusters have none
        user = getpass.getuser()
        named = _answer(["sacctmgr", "-nP", "show", "associations", f"user={user}", "format=account"], 1)
        default = _answer(["sacctmgr", "-nP", "show", "user", user, "format=defaultaccount"], 1)
        accounts = Accounts(tuple(sorted({*named.split()})), default.strip() or None)
    return Cluster(partitions(open_to, nodes, accounts), accounts)


def _answer(command: list[str], tries: int) -> str:
    """What a command prints. Raises ConfigError where it fails every time."""
    said = ""
    for attempt in range(tries):
        if attempt:
            time.sleep(SECONDS_BETWEEN)
        try:
            done = subprocess.run(
                command, capture_output=True, encoding="utf-8", timeout=SECONDS_TO_ANSWER, check=False
            )
        except subprocess.TimeoutExpired:
            said = f"no answer within {SECONDS_TO_ANSWER} s"
            continue
        if done.returncode == 0:
            return done.stdout
        said = (done.stderr or done.stdout).strip()
    hint = "is this a login node of the cluster? If it is, the controller is down or busy: look at `scontrol ping`."
    raise ConfigError(f"`{' '.join(command)}`: {said}\nHint: {hint}")


def partitions(partition_lines: str, node_lines: str, accounts: Accounts = Accounts()) -> dict[str, Partition]:
    """The partitions that a person may use now, from `scontrol --oneliner show partition` and `show node`."""
    nodes = [fields(line) for line in node_lines.splitlines() if line.strip()]
    found = {}
    for line in filter(str.strip, partition_lines.splitlines()):
        said = fields(line)
        if not said.get("PartitionName") or not _open(said, accounts):
            continue
        name = said["PartitionName"]
        members = [node for node in nodes if name in node.get("Partitions", "").split(",")]
        memory = [int(node["RealMemory"]) - _number(node.get("MemSpecLimit")) for node in members]
        limits = [limit for limit in (max(memory, default=0), _number(said.get("MaxMemPerNode"))) if limit]
        gpus: dict[str, int] = {}
        for node in members:
            for kind, number in gpus_of(node.get("Gres", "")).items():
                gpus[kind] = max(gpus.get(kind, 0), number)
        found[name] = Partition(
            name,
            default=said.get("Default") == "YES",
            minutes=minutes(said.get("MaxTime", "UNLIMITED")),
            mem_mb=min(limits, default=None),
            cpus=max((_number(node.get("CPUEfctv") or node.get("CPUTot")) for node in members), default=0),
            gpus=dict(sorted(gpus.items())),
        )
    return found


def fields(line: str) -> dict[str, str]:
    """KEY=VALUE words; of a key that comes twice the first counts, for free text such as a comment comes last."""
    found: dict[str, str] = {}
    for word in line.split():
        key, equals, value = word.partition("=")
        if equals:
            found.setdefault(key, value)
    return found


def _open(said: dict[str, str], accounts: Accounts) -> bool:
    """Whether a partition takes this person's jobs; scontrol itself leaves out those that are hidden from it."""
    if said.get("State", "UP") != "UP" or (said.get("RootOnly") == "YES" and getpass.getuser() != "root"):
        return False
    mine, allowed = {*accounts.names}, said.get("AllowAccounts", "ALL").split(",")
    if mine and allowed != ["ALL"] and not mine & {*allowed}:
        return False
    return not mine or bool(mine - {*said.get("DenyAccounts", "").split(",")})


def _number(text: str | None) -> int:
    """A number of SLURM's, 0 for what it writes where there is none (UNLIMITED, N/A, nothing)."""
    return int(text) if text and text.isdigit() else 0


def gpus_of(gres: str) -> dict[str, int]:
    """GPU type → number on a node, from its Gres such as `gpu:a100:4(S:0,2),gpu:v100:2,nvme:1`; without a type: ""."""
    found: dict[str, int] = {}
    for name, *words in (word.split(":") for word in re.sub(r"\([^)]*\)", "", gres).split(",")):
        if name == "gpu":
            kind, number = ":".join(words[:-1]), _number(words[-1]) if words else 1
            found[kind] = found.get(kind, 0) + number
    return found


def minutes(limit: str) -> int | None:
    """A time limit as SLURM writes it (days-hours:minutes:seconds and shorter) in minutes; None for no limit."""
    days, _, rest = limit.rpartition("-")
    parts = rest.split(":")
    if not all(part.isdigit() for part in [*parts, *([days] if days else [])]):
        return None
    numbers = [int(part) for part in parts]
    if days or len(numbers) == 3:  # hours first; otherwise minutes
        return int(days or 0) * 1440 + numbers[0] * 60 + (numbers[1] if len(numbers) > 1 else 0)
    return numbers[0]


def default_partition(cluster: Cluster) -> str | None:
    """Where a job goes that names no partition; None where SLURM would not know."""
    names = [name for name, each in cluster.partitions.items() if each.default] or [*cluster.partitions]
    return names[0] if len(names) == 1 else None


def gpu_partition(cluster: Cluster) -> str | None:
    """Where a job on GPUs goes: the default partition if it has some, else the only one that has; None if unclear."""
    default = default_partition(cluster)
    if default and cluster.partitions[default].gpus:
        return default
    names = [name for name, each in cluster.partitions.items() if each.gpus]
    return names[0] if len(names) == 1 else None


def listed(partitions: Iterable[Partition]) -> str:
    """Partitions to choose from, in words."""
    return "; ".join(map(str, partitions)) or "none"
