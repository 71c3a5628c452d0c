"""The plan: which artifact follows from which. Pure functions of the configuration; no torch, no Snakemake.

The path grammar stands at the top of the Snakefile. What a policy generates lies beneath that policy, so one rule
set serves every iteration, and runs that share a policy, a sampling or a labelling share the files.
"""

import math
from dataclasses import dataclass

from scripts.lib import sources
from scripts.lib.artifact import canonical_json
from scripts.lib.checks import Config
from scripts.lib.errors import ConfigError


@dataclass(frozen=True)
class PairSource:
    """One table of training pairs, its reference log-probabilities, and the share of its rows that is used."""

    pairs: str
    reference: str
    weight: float


class Plan:
    """All planning questions about one resolved configuration. Paths are strings, as Snakemake takes them."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.root: str = config["results"]

    # Paths

    def policy(self, policy: str) -> str:
        """Folder of a policy's weights; `policy` is sft/NAME or runs/NAME/iterN."""
        return f"{self.root}/{policy}/policy"

    def base(self, base: str) -> str:
        """Folder of a base model's weights."""
        return f"{self.root}/base/{base}/model"

    def reward_model(self, reward: str) -> str:
        """Folder of a trained reward model."""
        return f"{self.root}/reward/{reward}/model"

    def model(self, name: str) -> str:
        """Folder of sft/NAME, runs/NAME/iterN or base/NAME."""
        return self.base(name.removeprefix("base/")) if name.startswith("base/") else self.policy(name)

    def dataset(self, dataset: str) -> str:
        """Table of a data set."""
        return f"{self.root}/data/{dataset}.parquet"

    def prompts(self, prompts: str) -> str:
        """Table of a prompt set SET-N."""
        return f"{self.root}/prompts/{prompts}.parquet"

    def shards(self, prompts: str) -> list[int]:
        """Shard numbers of a prompt set SET-N: fixed blocks of its exact size."""
        block = self.config["prompts"][prompts.rsplit("-", 1)[0]]
        return list(range(math.ceil(block["size"] / block["shard_prompts"])))

    def rollouts(self, policy: str, sampling: str, prompts: str) -> list[str]:
        """Shards of a policy's responses."""
        return [f"{self.root}/{policy}/rollouts/{sampling}/{prompts}/{shard}.parquet" for shard in self.shards(prompts)]

    def rewards(self, policy: str, sampling: str, prompts: str, reward: str) -> list[str]:
        """Shards of the rewards of a policy's responses."""
        folder = f"{self.root}/{policy}/rollouts/{sampling}/{prompts}/rewards/{reward}"
        return [f"{folder}/{shard}.parquet" for shard in self.shards(prompts)]

    def logprobs(self, policy: str, sampling: str, prompts: str, scorer: str) -> list[str]:
        """Shards of the log-probabilities of a policy's responses under another policy."""
        folder = f"{self.root}/{policy}/rollouts/{sampling}/{prompts}/logprobs/{scorer}"
        return [f"{folder}/{shard}.parquet" for shard in self.shards(prompts)]

    # Runs

    def run(self, name: str, n: int) -> Config:
        """A run's settings in iteration n: its own, with what the iteration sets for itself.

        Raises ConfigError for a run or an iteration that the configuration does not have.
        """
        if name not in self.config["runs"]:
            raise ConfigError(f"run {name!r} is not in the config. Hint: it has {', '.join(self.config['runs'])}.")
        run = self.config["runs"][name]
        if not 1 <= n <= run["iterations"]:
            raise ConfigError(
                f"run {name!r} has iterations 1 to {run['iterations']}; there is no iteration {n}. "
                f"Hint: raise runs.{name}.iterations."
            )
        own = run["each"].get(str(n), {})
        merged = {**run, **{k: v for k, v in own.items() if v is not None and k not in ("dpo", "raft")}}
        for method in ("dpo", "raft"):
            merged[method] = {**run[method], **(own.get(method) or {})}
        return merged

    def runs_by(self, method: str) -> list[str]:
        """Names of the runs that train by a method."""
        return [name for name, run in self.config["runs"].items() if run["method"] == method]

    def iteration(self, name: str, n: int) -> str:
        """The policy of a run after iteration n; n = 0 is the run's SFT policy."""
        return f"runs/{name}/iter{n}" if n else f"sft/{self.config['runs'][name]['sft']}"

    def start(self, name: str, n: int) -> str:
        """The policy whose weights iteration n starts from."""
        return self.iteration(name, n - 1 if self.run(name, n)["start"] == "previous" else 0)

    def reference(self, name: str, n: int) -> str:
        """The policy that is DPO's reference in iteration n."""
        return self.iteration(name, n - 1 if self.run(name, n)["reference"] == "previous" else 0)

    def sampled(self, name: str, n: int) -> tuple[str, str, str]:
        """(policy, sampling, prompts) of the rollouts that train iteration n."""
        run = self.run(name, n)
        if run["prompts"] is None:
            raise ConfigError(
                f"run {name!r} trains on curated preferences only; it has no rollouts, rewards or pairs of its own. "
                f"Hint: ask for iter{n}_policy, or choose another run by --config run=NAME."
            )
        return self.iteration(name, n - 1), run["sampling"], f"{run['prompts']}-{n}"

    def _trained_on(self, name: str, n: int) -> list[int]:
        run = self.run(name, n)
        if run["prompts"] is None:
            return []
        return list(range(1, n + 1)) if run["train_on"] == "all" else [n]

    def pairs_of(self, name: str, n: int) -> str:
        """Table of the preference pairs made from iteration n's rollouts."""
        policy, sampling, prompts = self.sampled(name, n)
        run = self.run(name, n)
        if run["method"] != "dpo":
            raise ConfigError(
                f"run {name!r} trains on the best responses, not on pairs. "
                f"Hint: ask for iter{n}_rewards or iter{n}_policy, or choose another run by --config run=NAME."
            )
        return f"{self.root}/{policy}/rollouts/{sampling}/{prompts}/pairs/{run['reward']}/{run['pairing']}.parquet"

    def pair_sources(self, name: str, n: int) -> list[PairSource]:
        """What DPO trains on in iteration n: on-policy pairs, then curated ones."""
        scorer = self.reference(name, n)
        tables = [(self.pairs_of(name, i), 1.0) for i in self._trained_on(name, n)]
        for part in self.run(name, n)["mix"]:
            tables.append((f"{self.root}/data/{part['dataset']}/pairs/{part['pairing']}.parquet", part["weight"]))
        return [
            PairSource(table, f"{table.removesuffix('.parquet')}/reference/{scorer}.parquet", weight)
            for table, weight in tables
        ]

    def best_of_sources(self, name: str, n: int) -> tuple[list[str], list[str]]:
        """Rollout shards and reward shards that RAFT chooses the best responses from in iteration n."""
        rollouts, rewards = [], []
        for i in self._trained_on(name, n):
            policy, sampling, prompts = self.sampled(name, i)
            rollouts += self.rollouts(policy, sampling, prompts)
            rewards += self.rewards(policy, sampling, prompts, self.run(name, i)["reward"])
        return rollouts, rewards

    # Settings: what decides a stage's result, and nothing else

    def seed(self, block: Config) -> int:
        """A block's own seed, or the configuration's."""
        own = block.get("seed")
        return int(self.config["seed"] if own is None else own)

    def source_files(self, block: str, name: str) -> list[str]:
        """The local files that a base, data set or prompt set is read from; none for those made here."""
        given = self.config[block][name]
        if given["kind"] not in ("files", "folder"):
            return []
        return [str(path) for path in sources.files(given["path"], given.get("pattern", "*"), f"{block}.{name}.path")]

    def settings(self, stage: str, **wildcards: str) -> str:
        """One canonical JSON string with the scientific settings of a stage's job.

        One string, because Snakemake compares parameters as an unnamed set and would miss two values swapped.
        """
        return canonical_json(getattr(self, f"_{stage}")(**wildcards))

    def _seeded(self, block: Config, *without: str) -> Config:
        kept = {key: value for key, value in block.items() if key not in without}
        return {**kept, "seed": self.seed(block)}

    def _make_base(self, base: str) -> Config:
        return {**self._seeded(self.config["bases"][base], "kind"), "dtype": self.config["dtype"]}

    def _convert_base(self, base: str) -> Config:
        block = self.config["bases"][base]
        if block["kind"] == "gguf":
            return {**block, "dtype": self.config["dtype"]}
        digests = sources.digest(block["path"], "*", f"bases.{base}.path")
        return {"kind": "folder", "license": block["license"], "files": digests, "dtype": self.config["dtype"]}

    def _curate_data(self, dataset: str) -> Config:
        return self._source(self.config["datasets"][dataset], f"datasets.{dataset}.path")

    def _make_prompts(self, prompts: str) -> Config:
        name, _, number = prompts.rpartition("-")
        block = self.config["prompts"].get(name)
        if block is None:
            raise ConfigError(
                f"prompt set {name!r} is not in the config. Hint: it has {', '.join(self.config['prompts'])}."
            )
        return {**self._source(block, f"prompts.{name}.path", "shard_prompts"), "number": int(number)}

    def _source(self, block: Config, key: str, *without: str) -> Config:
        if block["kind"] == "world":
            return self._seeded(block, *without)
        kept = {name: value for name, value in block.items() if name not in (*without, "path")}
        return {**kept, "files": sources.digest(block["path"], block["pattern"], key)}

    def _train_sft(self, sft: str) -> Config:
        return {**self._seeded(self.config["sft"][sft], "kind"), "dtype": self.config["dtype"]}

    def _adopt_sft(self, sft: str) -> Config:
        return {}

    def _train_reward(self, reward: str) -> Config:
        # Which table plays which role stands here too: Snakemake compares inputs as a set and would miss a swap.
        return {**self._seeded(self.config["rewards"][reward], "kind"), "dtype": self.config["dtype"]}

    def _sample_rollouts(self, policy: str, sampling: str, prompts: str, shard: str) -> Config:
        block, shards = self.config["prompts"][prompts.rsplit("-", 1)[0]], self.shards(prompts)
        if int(shard) not in shards:
            raise ConfigError(
                f"prompt set {prompts!r} has shards 0 to {shards[-1]}; there is no shard {shard}. "
                f"Hint: size and shard_prompts of prompts.{prompts.rsplit('-', 1)[0]} decide."
            )
        # The rows, not the block's size: another size that leaves a shard its rows samples nothing again.
        first = int(shard) * block["shard_prompts"]
        rows = {"first": first, "prompts": min(block["shard_prompts"], block["size"] - first)}
        return {**self._seeded(self.config["samplings"][sampling]), **rows, "dtype": self.config["dtype"]}

    def _score_rollouts(self, **_: str) -> Config:
        return {"dtype": self.config["dtype"]}

    def _verify_rollouts(self, reward: str, **_: str) -> Config:
        return {"verifier": self.config["rewards"][reward]["verifier"]}

    def _score_logprobs(self, **_: str) -> Config:
        return {"dtype": self.config["dtype"]}

    def _build_pairs(self, pairing: str, **_: str) -> Config:
        return self._seeded(self.config["pairings"][pairing])

    def _select_pairs(self, pairing: str, **_: str) -> Config:
        block = self.config["pairings"][pairing]
        return {"size": block["size"], "minimum_margin": block["minimum_margin"]}

    def _score_reference(self, **_: str) -> Config:
        return {"dtype": self.config["dtype"]}

    def _train_dpo(self, run: str, n: str) -> Config:
        start, reference = self.start(run, int(n)), self.reference(run, int(n))
        # Tables with their weights, in order, for the same reason as in _train_reward.
        sources = [[part.pairs.removeprefix(self.root + "/"), part.weight] for part in self.pair_sources(run, int(n))]
        own = {"start": start, "reference": reference, "sources": sources, "dtype": self.config["dtype"]}
        return {**self._seeded(self.run(run, int(n))["dpo"]), **own}

    def _train_raft(self, run: str, n: str) -> Config:
        return {**self._seeded(self.run(run, int(n))["raft"]), "dtype": self.config["dtype"]}

    def _build_report(self) -> Config:
        # Longest first, then by name: the order of keys in a configuration means nothing.
        names = sorted(self.config["runs"], key=lambda name: (-self.config["runs"][name]["iterations"], name))
        runs = [[name, self.config["runs"][name]["method"], self.policies([name])] for name in names]
        benchmarks = {name: block["rewards"] for name, block in self.config["evaluation"].items()}
        return {"preset": self.config["preset"], "runs": runs, "benchmarks": benchmarks}

    def _evaluate(self, benchmark: str, **_: str) -> Config:
        return self._seeded(self.config["evaluation"][benchmark], "prompts", "sampling")

    # Targets

    def sft_of(self, policy: str) -> str:
        """The SFT policy that a policy descends from."""
        if policy.startswith("sft/"):
            return policy
        return self.iteration(policy.split("/")[1], 0)

    def policies(self, runs: list[str] | None = None) -> list[str]:
        """Every policy of the given runs (default all), SFT first, each once."""
        names = list(self.config["runs"]) if runs is None else runs
        found = [self.iteration(name, 0) for name in names]
        found += [
            self.iteration(name, n) for name in names for n in range(1, self.config["runs"][name]["iterations"] + 1)
        ]
        return list(dict.fromkeys(found))

    def closure(self, *targets: str) -> list[str]:
        """The targets and every manifest, table and digests file beneath them, but no weight folders.

        Named targets list all of it: a step that failed after its settings changed has lost its outputs, and only
        a target that names them makes Snakemake plan them again.
        """
        seen: dict[str, None] = {}
        pending = list(targets)
        while pending:
            path = pending.pop()
            if path not in seen:
                seen[path] = None
                pending += self.inputs(path)
        files: dict[str, None] = {}
        for path in seen:
            if path.endswith((".parquet", ".html")):
                files[path] = None
                files[path.rsplit(".", 1)[0] + ".json"] = None
            else:
                files[path + ".json"] = None
                files[path + ".sha256"] = None
        return sorted(files)

    def inputs(self, path: str) -> list[str]:
        """The artifacts that the artifact at `path` is made from."""
        if path == self.report():
            return self.report_inputs()
        parts = path.removeprefix(self.root + "/").removesuffix(".parquet").split("/")
        if parts[0] == "base" or parts[0] == "prompts":
            return []
        if parts[0] == "data":
            return self._data_inputs(parts)
        if parts[0] == "reward":
            block = self.config["rewards"][parts[1]]
            return [self.model(block["init"]), self.dataset(block["dataset"]), self.dataset(block["heldout"])]
        depth = 2 if parts[0] == "sft" else 3
        policy, tail = "/".join(parts[:depth]), parts[depth:]
        if tail == ["policy"]:
            return self._policy_inputs(policy)
        if tail[0] == "eval":
            return self.evaluation_inputs(policy, tail[1])
        sampling, prompts = tail[1], tail[2]
        if len(tail) == 4:
            return [self.policy(policy), self.prompts(prompts)]
        kind, shard = tail[3], tail[-1]
        own_shard = f"{self.root}/{policy}/rollouts/{sampling}/{prompts}/{shard}.parquet"
        if kind == "rewards":
            return [own_shard, *self.labeller(tail[4])]
        if kind == "logprobs":
            return [own_shard, self.policy("/".join(tail[4:-1]))]
        if len(tail) == 6:
            return [*self.rollouts(policy, sampling, prompts), *self.rewards(policy, sampling, prompts, tail[4])]
        return [path.rsplit("/reference/", 1)[0] + ".parquet", self.policy("/".join(tail[7:]))]

    def _data_inputs(self, parts: list[str]) -> list[str]:
        if len(parts) == 2:
            return []
        if len(parts) == 4:
            return [self.dataset(parts[1])]
        return [f"{self.root}/data/{parts[1]}/pairs/{parts[3]}.parquet", self.policy("/".join(parts[5:]))]

    def _policy_inputs(self, policy: str) -> list[str]:
        if policy.startswith("sft/"):
            block = self.config["sft"][policy.removeprefix("sft/")]
            return [self.base(block["base"]), *([self.dataset(block["dataset"])] if block["kind"] == "train" else [])]
        _, name, iteration = policy.split("/")
        n = int(iteration.removeprefix("iter"))
        found = [self.policy(self.start(name, n))]
        if self.run(name, n)["method"] == "raft":
            rollouts, rewards = self.best_of_sources(name, n)
            return found + rollouts + rewards
        return found + [path for source in self.pair_sources(name, n) for path in (source.pairs, source.reference)]

    def labeller(self, reward: str) -> list[str]:
        """The artifacts that a labeller itself is made of: its model, or nothing for a rule."""
        return [self.reward_model(reward)] if self.config["rewards"][reward]["kind"] == "bt" else []

    def evaluation_inputs(self, policy: str, benchmark: str) -> list[str]:
        """Everything that one policy's evaluation reads."""
        return [path for paths in self.evaluation_parts(policy, benchmark).values() for path in paths]

    def evaluation_parts(self, policy: str, benchmark: str) -> dict[str, list[str]]:
        """The tables of one policy's evaluation by role; the last two compare with its SFT policy."""
        block = self.config["evaluation"][benchmark]
        where = (block["sampling"], f"{block['prompts']}-1")
        sft = self.sft_of(policy)
        parts = {
            "rollouts": self.rollouts(policy, *where),
            "rewards": [path for reward in block["rewards"] for path in self.rewards(policy, *where, reward)],
        }
        own = policy == sft
        parts["logprobs"] = [] if own else self.logprobs(policy, *where, sft)
        parts["sft_rewards"] = [] if own else [p for r in block["rewards"] for p in self.rewards(sft, *where, r)]
        return parts

    def evaluations(self, runs: list[str] | None = None) -> list[str]:
        """The evaluation of every policy of the given runs (default all) on every benchmark."""
        return [
            f"{self.root}/{policy}/eval/{benchmark}.parquet"
            for benchmark in self.config["evaluation"]
            for policy in self.policies(runs)
        ]

    def report(self) -> str:
        """The self-contained report."""
        return f"{self.root}/report.html"

    def manifests(self, *artifacts: str) -> list[str]:
        """The manifests of some artifacts."""
        return [f"{path.removesuffix('.parquet')}.json" for path in artifacts]

    def report_inputs(self) -> list[str]:
        """What the report reads: every evaluation, every on-policy pair table, every reward model."""
        pairs = [
            self.pairs_of(name, n)
            for name in self.runs_by("dpo")
            if self.config["runs"][name]["prompts"]
            for n in range(1, self.config["runs"][name]["iterations"] + 1)
        ]
        used = {own["reward"] for run in self.config["runs"].values() for own in [run, *run["each"].values()]}
        used |= {reward for block in self.config["evaluation"].values() for reward in block["rewards"]}
        models = [path for name in self.config["rewards"] if name in used for path in self.labeller(name)]
        return [*self.evaluations(), *dict.fromkeys(pairs), *models]

    def target(self, name: str, n: int = 1) -> list[str]:
        """The files of a named target (sft, reward, iterN_policy, evaluation, …), with their closure.

        Raises ConfigError for an iteration that the chosen run does not have.
        """
        return self.closure(*self._target(name, self.config["run"], n))

    def _target(self, name: str, run: str, n: int) -> list[str]:
        if name == "sft":
            return [self.policy(self.iteration(run, 0))]
        if name == "reward":
            return self.labeller(self.run(run, 1)["reward"]) if self.run(run, 1)["reward"] else []
        if name == "policy":
            self.run(run, n)
            return [self.policy(self.iteration(run, n))]
        if name == "rollouts":
            return self.rollouts(*self.sampled(run, n))
        if name == "rewards":
            return self.rewards(*self.sampled(run, n), self.run(run, n)["reward"])
        if name == "pairs":
            return [self.pairs_of(run, n)]
        if name == "evaluation":
            return self.evaluations([run])
        if name == "report":
            return [self.report()]
        if name == "all":
            return [self.report(), *(self.policy(policy) for policy in self.policies())]
        raise ConfigError(f"no target {name!r}")
