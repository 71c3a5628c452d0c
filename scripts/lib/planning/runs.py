"""Runs: which policy precedes which, and what each iteration samples, is judged by and trains on."""

from dataclasses import dataclass
from typing import Any

from scripts.lib.kinds.common import Block
from scripts.lib.kinds.config import Config
from scripts.lib.kinds.runs import Run
from scripts.lib.planning.paths import Paths
from scripts.lib.stage.errors import ConfigError


@dataclass(frozen=True)
class PairSource:
    """One table of training pairs, its reference log-probabilities, and the share of its rows that is used."""

    pairs: str
    reference: str
    weight: float


class Runs(Paths):
    """What the runs of one configuration need, iteration by iteration."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._runs: dict[tuple[str, int], Run] = {}

    def seeded(self, block: Block, *without: str) -> dict[str, Any]:
        """The keys of a block but for some, with its own seed, or the configuration's, in place."""
        seed = getattr(block, "seed", None)
        return block.model_dump(exclude=set(without)) | {"seed": self.config.seed if seed is None else seed}

    def run(self, name: str, n: int) -> Run:
        """A run's settings in iteration n: its own, with what the iteration overrides.

        Raises ConfigError for a run or an iteration that the configuration does not have.
        """
        if name not in self.config.runs:
            raise ConfigError(f"run {name!r} is not in the config. Hint: it has {', '.join(self.config.runs)}.")
        run = self.config.runs[name]
        if not 1 <= n <= run.iterations:
            raise ConfigError(
                f"run {name!r} has iterations 1 to {run.iterations}; there is no iteration {n}. "
                f"Hint: raise runs.{name}.iterations."
            )
        if (name, n) not in self._runs:
            self._runs[name, n] = run.at(n)
        return self._runs[name, n]

    def steps(self) -> list[tuple[str, int]]:
        """(run, iteration) of every training step."""
        return [(name, n) for name, run in self.config.runs.items() for n in range(1, run.iterations + 1)]

    def iteration(self, name: str, n: int) -> str:
        """The policy of a run after iteration n; n = 0 is the run's SFT policy."""
        return f"runs/{name}/iter{n}" if n else f"sft/{self.config.runs[name].sft}"

    def sft_of(self, policy: str) -> str:
        """The SFT policy that a policy descends from."""
        return policy if policy.startswith("sft/") else self.iteration(policy.split("/")[1], 0)

    def base_of(self, model: str) -> str:
        """The base that base/NAME, sft/NAME or runs/NAME/iterN descends from."""
        if model.startswith("base/"):
            return model.removeprefix("base/")
        return self.config.sft[self.sft_of(model).removeprefix("sft/")].base

    def policies(self, runs: list[str] | None = None) -> list[str]:
        """Every policy of the given runs (default all), SFT first, each once."""
        names = list(self.config.runs) if runs is None else runs
        first = [self.iteration(name, 0) for name in names]
        trained = [self.iteration(name, n) for name in names for n in range(1, self.config.runs[name].iterations + 1)]
        return list(dict.fromkeys([*first, *trained]))

    def start(self, name: str, n: int) -> str:
        """The policy whose weights iteration n starts from."""
        return self.iteration(name, n - 1 if self.run(name, n).start == "previous" else 0)

    def reference(self, name: str, n: int) -> str:
        """The policy that is DPO's reference in iteration n."""
        return self.iteration(name, n - 1 if self.run(name, n).reference == "previous" else 0)

    def sampled(self, name: str, n: int) -> tuple[str, str, str]:
        """(policy, sampling, prompts) of the rollouts that train iteration n."""
        run = self.run(name, n)
        if run.prompts is None or run.sampling is None:
            raise ConfigError(
                f"run {name!r} trains on curated preferences only; it has no rollouts, rewards or pairs of its own. "
                f"Hint: ask for iter{n}_policy, or choose another run by --config run=NAME."
            )
        return self.iteration(name, n - 1), run.sampling, f"{run.prompts}-{n}"

    def trained_on(self, name: str, n: int) -> list[int]:
        """The iterations whose rollouts iteration n trains on."""
        run = self.run(name, n)
        if run.prompts is None:
            return []
        return list(range(1, n + 1)) if run.train_on == "all" else [n]

    def rewards_of(self, name: str, n: int) -> list[str]:
        """Shards of the rewards of iteration n's rollouts."""
        where, reward = self.sampled(name, n), self.run(name, n).reward
        if reward is None:
            raise ConfigError(f"run {name!r} names no reward. Hint: set runs.{name}.reward.")
        return self.rewards(*where, reward)

    def pairs_of(self, name: str, n: int) -> str:
        """Table of the preference pairs made from iteration n's rollouts."""
        where, run = self.sampled(name, n), self.run(name, n)
        if run.method != "dpo" or run.reward is None or run.pairing is None:
            raise ConfigError(
                f"run {name!r} trains on the best responses, not on pairs. "
                f"Hint: ask for iter{n}_rewards or iter{n}_policy, or choose another run by --config run=NAME."
            )
        return self.pairs(*where, run.reward, run.pairing)

    def pair_sources(self, name: str, n: int) -> list[PairSource]:
        """What DPO trains on in iteration n: on-policy pairs, then curated ones."""
        run, scorer = self.run(name, n), self.reference(name, n)
        quantized = run.dpo.lora is not None and run.dpo.lora.quantization == "nf4"
        tables = [(self.pairs_of(name, i), 1.0) for i in self.trained_on(name, n)]
        tables += [(self.curated_pairs(part.dataset, part.pairing), part.weight) for part in run.mix]
        return [PairSource(table, self.reference_pass(table, scorer, quantized), weight) for table, weight in tables]

    def engine_checks(self, name: str, n: int) -> list[str]:
        """The checks of the engine on all rollouts that iteration n trains on."""
        return [table for i in self.trained_on(name, n) for table in self.engine_check(*self.sampled(name, i))]

    def evaluated(self, benchmark: str) -> tuple[str, str]:
        """(sampling, prompts) of the responses that a benchmark judges."""
        block = self.config.evaluation[benchmark]
        return block.sampling, f"{block.prompts}-1"

    def evaluations(self, runs: list[str] | None = None) -> list[str]:
        """The evaluation of every policy of the given runs (default all) on every benchmark."""
        return [
            self.evaluation(policy, benchmark) for benchmark in self.config.evaluation for policy in self.policies(runs)
        ]

    def labeller(self, reward: str) -> list[str]:
        """The artifacts that a labeller itself is made of: its model, or nothing for a rule."""
        return [self.reward_model(reward)] if self.config.rewards[reward].has_model else []

    def rewards_used(self) -> set[str]:
        """Names of the rewards that a run or a benchmark refers to."""
        names = {reward for block in self.config.evaluation.values() for reward in block.rewards}
        for run in self.config.runs.values():
            named = [run.reward, *(own.reward for own in run.overrides.values())]
            names |= {reward for reward in named if reward is not None}
        return names
