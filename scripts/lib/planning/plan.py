"""The plan: which stage makes an artifact, what it reads, and what a target takes. Derived from the stages' cards.

Pure functions of the configuration; no torch, no Snakemake.
"""

import re
from collections.abc import Iterable
from functools import cache
from pathlib import PurePosixPath

from scripts.lib.kinds.common import Block
from scripts.lib.kinds.config import Config
from scripts.lib.planning import paths
from scripts.lib.planning.card import Card, Inputs, Wildcards
from scripts.lib.planning.cards import CARDS, card
from scripts.lib.planning.runs import Runs
from scripts.lib.stage.artifact import canonical_json
from scripts.lib.stage.digest import code_digest
from scripts.lib.stage.errors import ConfigError

Maker = tuple[str, dict[str, str]]


@cache
def _patterns() -> list[tuple[Card, re.Pattern[str]]]:
    return [(each, paths.pattern(each.output)) for each in CARDS.values()]


class Plan(Runs):
    """All planning questions about one resolved configuration."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._makers: dict[str, Maker] = {}
        self._settings: dict[tuple[str, tuple[tuple[str, str], ...]], Block] = {}
        self._names = {stage: each.makes(config) for stage, each in CARDS.items()}

    # Stages

    def maker(self, path: str) -> Maker:
        """The stage that makes the artifact at `path`, and its wildcards.

        Raises ConfigError for a path outside the grammar, or one that no stage makes under this configuration.
        """
        if path not in self._makers:
            self._makers[path] = self._maker(path)
        return self._makers[path]

    def _maker(self, path: str) -> Maker:
        inside = self.inside(path)
        if inside != path:
            for each, pattern in _patterns():
                match = pattern.fullmatch(inside)
                if match and self.takes(each.name, match.groupdict()):
                    return each.name, match.groupdict()
        raise ConfigError(f"{path}: no artifact has this path. Hint: the Snakefile's first lines list all there are.")

    def takes(self, stage: str, wildcards: Wildcards) -> bool:
        """Whether these values of wildcards are the stage's, where several stages write such a path."""
        return all(wildcards[name] in names for name, names in self._names[stage].items())

    def names(self, stage: str) -> dict[str, list[str]]:
        """The values of wildcards that are the stage's alone."""
        return self._names[card(stage).name]

    def card(self, path: str) -> Card:
        """The card of the stage that makes an artifact."""
        return CARDS[self.maker(path)[0]]

    def roles(self, stage: str, wildcards: Wildcards) -> Inputs:
        """What a stage reads, by role, for a job's wildcards."""
        return card(stage).inputs(self, wildcards)

    def reads(self, path: str) -> list[str]:
        """Every file and folder that the stage of an artifact reads; the report also reads manifests."""
        stage, wildcards = self.maker(path)
        return CARDS[stage].read(self, wildcards)

    def inputs(self, path: str) -> list[str]:
        """The artifacts that the artifact at `path` is made from; a manifest stands for its artifact."""
        return list(dict.fromkeys(self.artifact(read) if read.endswith(".json") else read for read in self.reads(path)))

    def settings(self, stage: str, wildcards: Wildcards) -> Block:
        """What decides the result of a stage's job.

        Raises ConfigError for what the configuration does not have, and for a source whose files are not there.
        """
        key = stage, tuple(sorted(wildcards.items()))
        if key not in self._settings:  # digests of local files are part of some: read them once
            self._settings[key] = CARDS[stage].settings(self, wildcards)
        return self._settings[key]

    def settings_json(self, stage: str, wildcards: Wildcards) -> str:
        """The settings as one canonical JSON string.

        One string, because Snakemake compares parameters as an unnamed set and would miss two values swapped.
        """
        return canonical_json(self.settings(stage, wildcards).model_dump(mode="json"))

    def code(self, stage: str, wildcards: Wildcards) -> str:
        """The digest of the code that a stage's job runs."""
        return code_digest(stage, self.settings(stage, wildcards).model_dump())

    # Targets

    @property
    def iterations(self) -> int:
        """Iterations of the run that the named targets act on."""
        return self.config.runs[self.config.run].iterations

    def artifacts(self, *targets: str) -> list[str]:
        """The targets and every artifact beneath them, each once, after all that it is made from."""
        done: dict[str, None] = {}
        inputs: dict[str, list[str]] = {}
        pending = list(reversed(targets))
        while pending:
            path = pending[-1]
            if path not in inputs:
                inputs[path] = self.inputs(path)
            missing = [below for below in inputs[path] if below not in done]
            if missing:
                pending += reversed(missing)
            else:
                done[pending.pop()] = None
        return list(done)

    def closure(self, *targets: str) -> list[str]:
        """The targets and every manifest, table and digests file beneath them, but no weight folders.

        Named targets list all of it: a step that failed after its settings changed has lost its outputs, and only
        a target that names them makes Snakemake plan them again.
        """
        files: set[str] = set()
        for path in self.artifacts(*targets):
            files |= {paths.manifest(path), f"{path}.sha256" if paths.is_folder(path) else path}
        return sorted(files)

    def target(self, name: str, n: int = 1) -> list[str]:
        """The files of a named target (sft, reward, iterN_policy, evaluation, …), with their closure.

        iterN_weights is iterN_policy with the folder itself, which may have been pruned.

        Raises ConfigError for an iteration that the chosen run does not have.
        """
        asked = self._target(name, self.config.run, n)
        # Weights are asked for by name alone; nothing else that a person types needs the folders themselves.
        return [*self.closure(*asked), *(asked if name == "weights" else [])]

    def asked(self, target: str) -> list[str]:
        """The artifacts that a target of the command line ends in: a named one (iter3_policy), or a file by its path.

        Raises ConfigError for anything else.
        """
        numbered = re.fullmatch(r"iter([0-9]+)_([a-z]+)", target)
        if numbered:
            return self._target(numbered[2], self.config.run, int(numbered[1]))
        if "/" in target:
            return [self.artifact(paths.as_asked(target))]
        return self._target(target, self.config.run, 1)

    def artifact(self, path: str) -> str:
        """The artifact that a file is a part of: `path` itself, or what its manifest or its digests belong to."""
        stem = re.sub(r"\.(json|sha256|parquet|html)$", "", path.rstrip("/"))
        inside = self.inside(stem)
        for each, _ in _patterns():
            suffix = PurePosixPath(each.output).suffix
            if paths.pattern(each.output.removesuffix(suffix)).fullmatch(inside) and (suffix != ".parquet"):
                return stem + suffix
        return f"{stem}.parquet"

    def _target(self, name: str, run: str, n: int) -> list[str]:
        match name:
            case "sft":
                return [self.policy(self.iteration(run, 0))]
            case "reward":
                reward = self.run(run, 1).reward
                return self.labeller(reward) if reward else []
            case "policy" | "weights":
                self.run(run, n)
                return [self.policy(self.iteration(run, n))]
            case "rollouts":
                return self.rollouts(*self.sampled(run, n))
            case "rewards":
                return self.rewards_of(run, n)
            case "pairs":
                return [self.pairs_of(run, n)]
            case "evaluation":
                return self.evaluations([run])
            case "report":
                return [self.report()]
            case "all":
                return [self.report(), *(self.policy(policy) for policy in self.policies())]
        raise ConfigError(f"no target {name!r}. Hint: `snakemake --list-rules` names them; a file is one too.")

    # Questions of the Snakefile and of the tools

    def samples_by(self, engine: str, artifacts: Iterable[str]) -> bool:
        """Whether one of these artifacts is sampled by an engine."""
        makers = map(self.maker, artifacts)
        return any(
            stage == "sample_rollouts" and self.config.samplings[wildcards["sampling"]].engine == engine
            for stage, wildcards in makers
        )

    def unpinned(self) -> list[str]:
        """Config keys of the hub's sources beneath `all` that name no commit."""
        loose = []
        for block in ("bases", "datasets", "prompts"):
            for name, entry in getattr(self.config, block).items():
                revisions = getattr(entry, "revision", [])
                if "main" in (revisions if isinstance(revisions, list) else [revisions]):
                    loose.append(f"{block}.{name}")
        if not loose:
            return []
        makers = [self.maker(path) for path in self.artifacts(*self.asked("all"))]
        used = {f"bases.{wildcards['base']}" for stage, wildcards in makers if stage == "fetch_base"}
        used |= {
            f"{wildcards['block']}.{wildcards['source'].partition('-')[0]}"
            for stage, wildcards in makers
            if stage == "fetch_data"
        }
        return [key for key in loose if key in used]
