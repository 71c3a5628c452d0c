"""From manifests and tables to facts: which runs and policies there are, and what was measured of each."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from scripts.lib.data import gates, tables
from scripts.lib.data.schemas.evaluation import EVALUATION
from scripts.lib.kinds.evaluation import BuildReport
from scripts.lib.stage import artifact
from scripts.lib.stage.errors import InputError

Manifest = dict[str, Any]

MODES = ("sampled", "greedy")
LOG_RATIO = "log π − log π(SFT)"
POLICY = r"(?:^|/)(?P<policy>sft/\w+|runs/\w+/iter[1-9][0-9]*)"
EVALUATION_FILE = re.compile(POLICY + r"/eval/(?P<benchmark>\w+)\.(?:json|parquet)$")
PAIRS_FILE = re.compile(POLICY + r"/rollouts/\w+/(?P<prompts>\w+-\d+)/pairs/(?P<reward>\w+)/(?P<pairing>\w+)\.json$")
ENGINE_FILE = re.compile(POLICY + r"/rollouts/(?P<sampling>\w+)/(?P<prompts>\w+-\d+)/engine\.json$")
REWARD_FILE = re.compile(r"(?:^|/)reward/(?P<reward>\w+)/model\.json$")
BENEATH_RESULTS = r"(?:^|/)(?P<artifact>(?:sft/\w+|runs/\w+/iter[1-9][0-9]*|reward/\w+)/"
DESCRIBED = re.compile(BENEATH_RESULTS + r"(?:policy|model|eval/\w+|rollouts/.+))\.json$")
WEIGHTS_FILE = re.compile(POLICY + r"/policy(?:\.json)?$")


@dataclass(frozen=True)
class Run:
    """A run as the page shows it: its policies in order, SFT first, and the slot of its colour and marker."""

    name: str
    method: str
    policies: list[str]
    slot: int


@dataclass(frozen=True)
class Benchmark:
    """Every policy's evaluation on one prompt set; the first labeller is the headline."""

    name: str
    labellers: list[str]
    manifests: dict[str, Manifest]
    tables: dict[str, Path]

    def summary(self, policy: str, mode: str) -> dict[str, Any]:
        """The manifest's numbers of one policy in one mode."""
        summary: dict[str, Any] = self.manifests[policy]["metrics"][mode]
        return summary

    def per_prompt(self, policy: str, mode: str, labeller: str) -> dict[str, float]:
        """Mean reward of a policy's responses to each prompt in one mode, from its table."""
        rows = tables.read_table(self.tables[policy], EVALUATION)
        drawn = rows.filter((pl.col("temperature") > 0) == (mode == "sampled"))
        rewards: dict[str, list[float]] = {}
        for prompt, values in drawn.select("prompt_id", "rewards").iter_rows():
            rewards.setdefault(prompt, []).append(json.loads(values)[labeller])
        return {prompt: sum(values) / len(values) for prompt, values in rewards.items()}

    @property
    def modes(self) -> list[str]:
        """The modes that every policy was evaluated in."""
        return [mode for mode in MODES if all(mode in manifest["metrics"] for manifest in self.manifests.values())]

    @cached_property
    def temperature(self) -> str:
        """How the sampled responses were drawn, as the tables say; empty if all are greedy."""
        values = tables.read_table(next(iter(self.tables.values())), EVALUATION)["temperature"].unique().sort()
        return "at temperature " + " and ".join(f"{value:g}" for value in values if value > 0) if values.max() else ""

    @property
    def drawn(self) -> str:
        """How the responses of the first mode were drawn."""
        return self.temperature or "by greedy decoding"

    @property
    def distance(self) -> str:
        """What the mean of log π − log π_SFT is: an estimate of the KL only if the draws are from π itself."""
        return "KL to SFT" if self.temperature == "at temperature 1" else LOG_RATIO

    @property
    def confidence(self) -> str:
        """The intervals' confidence, for people."""
        return f"{100 * next(iter(self.manifests.values()))['settings']['confidence']:g} %"


class Step(NamedTuple):
    """A step beside the evaluations: what the path of its manifest says of it, and the manifest."""

    where: dict[str, str]
    manifest: Manifest


class Warned(NamedTuple):
    """A step that warned, by the path of its artifact beneath the results, and what it said."""

    where: str
    text: str


@dataclass
class Described:
    """Manifests by what they describe. `weights` maps a policy to the SHA-256 of its weights."""

    evaluations: dict[tuple[str, str], Manifest] = field(default_factory=dict)
    pairs: list[Step] = field(default_factory=list)
    engines: list[Step] = field(default_factory=list)
    rewards: list[Step] = field(default_factory=list)
    weights: dict[str, str] = field(default_factory=dict)
    warnings: list[Warned] = field(default_factory=list)

    def add(self, path: Path) -> None:
        """Read one manifest and put it where it belongs. Raises InputError if that is nowhere."""
        manifest = artifact.read_json(path)
        for entry in [entry for entries in manifest.get("inputs", {}).values() for entry in entries]:
            if weights := WEIGHTS_FILE.search(entry["path"]):
                self.weights[weights["policy"]] = entry["sha256"]
        if place := DESCRIBED.search(str(path)):
            self.warnings += [Warned(place["artifact"], text) for text in manifest.get("warnings", [])]
        if evaluation := EVALUATION_FILE.search(str(path)):
            self.evaluations[evaluation["benchmark"], evaluation["policy"]] = manifest
        elif pairs := PAIRS_FILE.search(str(path)):
            self.pairs.append(Step(pairs.groupdict(), manifest))
        elif engine := ENGINE_FILE.search(str(path)):
            self.engines.append(Step(engine.groupdict(), manifest))
        elif reward := REWARD_FILE.search(str(path)):
            self.rewards.append(Step(reward.groupdict(), manifest))
        elif weights := WEIGHTS_FILE.search(str(path)):
            self.weights[weights["policy"]] = manifest["output"]
        else:
            raise InputError(
                f"{path}: the manifest of a {manifest.get('stage', 'nameless')} stage has no place in the report.\n"
                "Hint: give those of evaluations, pair tables, checks of engines, reward models and policies."
            )


@dataclass(frozen=True)
class Facts:
    """Everything that the page is made from."""

    preset: str
    runs: list[Run]
    benchmarks: list[Benchmark]
    pairs: list[Step]
    engines: list[Step]
    rewards: list[Step]
    weights: dict[str, str]
    warnings: list[Warned]


def read(settings: BuildReport, inputs: Mapping[str, list[Path]]) -> Facts:
    """The facts of a build. `inputs` holds the `manifests` and, under `evaluations`, the tables of the evaluations.

    Raises InputError for a manifest that describes nothing of the report, and if a policy lacks its evaluation.
    """
    described = Described()
    for path in inputs["manifests"]:
        described.add(path)
    # A table by another name is missing below, with the policy that it should have been of.
    named = [(EVALUATION_FILE.search(str(path)), path) for path in inputs["evaluations"]]
    evaluated = {(name["benchmark"], name["policy"]): path for name, path in named if name}
    runs = [Run(name, method, policies, slot) for slot, (name, method, policies) in enumerate(settings.runs)]
    policies = list(dict.fromkeys(policy for run in runs for policy in run.policies))
    benchmarks = [
        _benchmark(name, labellers, policies, described.evaluations, evaluated)
        for name, labellers in (settings.benchmarks.items() if runs else ())
    ]
    steps = (described.pairs, described.engines, described.rewards)
    warnings = described.warnings + over_iterations(runs, benchmarks)
    return Facts(settings.preset, runs, benchmarks, *steps, described.weights, warnings)


def over_iterations(runs: list[Run], benchmarks: list[Benchmark]) -> list[Warned]:
    """What only the policies of a run together show; the first is held against its SFT policy by its own evaluation."""
    return [
        Warned(f"{after}/eval/{benchmark.name}", text)
        for benchmark in benchmarks
        for run in runs
        for before, after in pairwise(run.policies[1:])
        for text in gates.of_iteration(
            benchmark.summary(before, benchmark.modes[0]),
            benchmark.summary(after, benchmark.modes[0]),
            benchmark.labellers,
        )
    ]


def _benchmark(
    name: str,
    labellers: list[str],
    policies: list[str],
    evaluations: dict[tuple[str, str], Manifest],
    evaluated: dict[tuple[str, str], Path],
) -> Benchmark:
    """One benchmark with every policy's manifest and table, both given by (benchmark, policy)."""
    for policy in policies:
        modes = evaluations.get((name, policy), {}).get("metrics", {})
        scored = [set(labellers) <= summary["rewards"].keys() for summary in modes.values()]
        if not scored or not all(scored) or (name, policy) not in evaluated:
            raise InputError(
                f"benchmark {name}: no evaluation of {policy} by {', '.join(labellers)}\n"
                "Hint: give every policy's table and manifest; Snakemake's rule build_report does."
            )
    manifests = {policy: evaluations[name, policy] for policy in policies}
    return Benchmark(name, labellers, manifests, {policy: evaluated[name, policy] for policy in policies})
