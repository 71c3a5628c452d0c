"""Digests of what the page speaks of, where a manifest names them."""

from typing import NamedTuple

from scripts.lib.report.policies import Policy
from scripts.lib.report.read import Benchmark, Facts

DIGITS = 12
LISTED = 3  # digests of shards that are written out


class Origin(NamedTuple):
    """A policy and the beginnings of digests: of its weights, and of each benchmark's responses and evaluation."""

    policy: Policy
    digests: list[str]


class Provenance(NamedTuple):
    """The digests of every policy, each cut to `digits`, and those of the code that made all of it."""

    digits: int
    benchmarks: list[str]
    origins: list[Origin]
    code: str


def of(facts: Facts, policies: list[Policy]) -> Provenance:
    """Where everything on the page comes from."""
    origins = []
    for policy in policies:
        digests = [facts.weights.get(policy.path, "–")[:DIGITS]]
        origins.append(Origin(policy, digests + [d for b in facts.benchmarks for d in _digests(b, policy.path)]))
    manifests = [manifest for benchmark in facts.benchmarks for manifest in benchmark.manifests.values()]
    manifests += [step.manifest for step in (*facts.pairs, *facts.engines, *facts.rewards)]
    code = sorted({str(manifest["code"]).split(" ")[0] for manifest in manifests})
    return Provenance(DIGITS, [benchmark.name for benchmark in facts.benchmarks], origins, " ".join(code))


def _digests(benchmark: Benchmark, policy: str) -> tuple[str, str]:
    """The responses that a policy was evaluated by, and the evaluation."""
    manifest = benchmark.manifests[policy]
    shards = [entry["sha256"][:DIGITS] for entry in manifest["inputs"]["rollouts"]]
    return " ".join(shards[:LISTED]) + (" …" if shards[LISTED:] else ""), manifest["output"][:DIGITS]
