"""The plan: which artifact follows from which. Pure functions of the configuration; no torch, no Snakemake.

The path grammar stands at the top of the Snakefile. What a policy generates lies beneath that policy, so one rule
set serves every iteration, and runs that share a policy, a sampling or a labelling share the files.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from scripts.lib.data import sources
from scripts.lib.planning.checks import Config
from scripts.lib.stage.errors import ConfigError


@dataclass(frozen=True)
class PairSource:
    """One table of training pairs, its reference log-probabilities, and the share of its rows that is used."""

    pairs: str
    reference: str
    weight: float


def _reference(pairs: str, scorer: list[str]) -> tuple[str, dict[str, str]]:
    """`maker` for the reference pass over a table of pairs, under a policy as it is or, with nf4/, in 4 bits."""
    quantized = "nf4/" if scorer[0] == "nf4" else ""
    return "score_reference", {
        "tail": pairs,
        "quantized": quantized,
        "scorer": "/".join(scorer).removeprefix(quantized),
    }


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

    def fetched(self, block: str, name: str) -> list[str]:
        """Folder with the files of a hub that a data set, or a prompt set SET-N, is read from; none for other kinds.

        All SET-N are read from one folder, unless each has a repository of its own.
        """
        source = name.partition("-")[0]
        given = self.config[block].get(source, {"kind": None})
        if given["kind"] != "hub":
            return []
        return [f"{self.root}/source/{block}/{name if '{n}' in given['repo'] else source}/files"]

    def unpinned(self) -> list[str]:
        """Config keys of the hub's sources beneath `all` that name no commit."""
        found = []
        for block in ("bases", "datasets", "prompts"):
            for name, given in self.config[block].items():
                revisions = given.get("revision", [])
                if "main" in (revisions if isinstance(revisions, list) else [revisions]):
                    found.append(f"{block}.{name}")
        if not found:
            return []
        makers = [self.maker(path) for path in self.artifacts(*self.asked("all"))]
        used = {f"bases.{own['base']}" for rule, own in makers if rule == "fetch_base"}
        used |= {f"{own['block']}.{own['source'].partition('-')[0]}" for rule, own in makers if rule == "fetch_data"}
        return [key for key in found if key in used]

    def shards(self, prompts: str) -> list[int]:
        """Shard numbers of a prompt set SET-N: fixed blocks of its exact size."""
        block = self.config["prompts"][prompts.rsplit("-", 1)[0]]
        return list(range(math.ceil(block["size"] / block["shard_prompts"])))

    def rollouts(self, policy: str, sampling: str, prompts: str) -> list[str]:
        """Shards of a policy's responses."""
        return [f"{self.root}/{policy}/rollouts/{sampling}/{prompts}/{shard}.parquet" for shard in self.shards(prompts)]

    def engine(self, sampling: str) -> str:
        """The engine of a sampling."""
        return str(self.config["samplings"][sampling]["engine"])

    def samples_by(self, engine: str, paths: Iterable[str]) -> bool:
        """Whether one of these artifacts is sampled by an engine."""
        makers = map(self.maker, paths)
        return any(rule == "sample_rollouts" and self.engine(own["sampling"]) == engine for rule, own in makers)

    def engine_check(self, policy: str, sampling: str, prompts: str) -> list[str]:
        """The table that holds a policy's engine against the trainer; none where the trainer's own library samples."""
        block = self.config["samplings"][sampling]
        if block["engine"] == "transformers" or not block["check_responses"]:
            return []
        return [f"{self.root}/{policy}/rollouts/{sampling}/{prompts}/engine.parquet"]

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
        lora = self.run(name, n)["dpo"]["lora"] or {}
        scorer = ("nf4/" if lora.get("quantization") == "nf4" else "") + self.reference(name, n)
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

    def engine_checks(self, name: str, n: int) -> list[str]:
        """The checks of the engine on all rollouts that iteration n trains on."""
        return [table for i in self._trained_on(name, n) for table in self.engine_check(*self.sampled(name, i))]

    def source_files(self, block: str, name: str) -> list[str]:
        """The local files that a base, data set or prompt set is read from; none for those made here."""
        given = self.config[block][name]
        if given["kind"] not in ("files", "folder"):
            return []
        return [str(path) for path in sources.files(given["path"], given.get("pattern", "*"), f"{block}.{name}.path")]

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

    def artifacts(self, *targets: str) -> list[str]:
        """The targets and every artifact beneath them, each once, after all that it is made from."""
        found: dict[str, None] = {}
        inputs: dict[str, list[str]] = {}
        pending = list(reversed(targets))
        while pending:
            path = pending[-1]
            if path not in inputs:
                inputs[path] = self.inputs(path)
            missing = [below for below in inputs[path] if below not in found]
            if missing:
                pending += reversed(missing)
            else:
                found[pending.pop()] = None
        return list(found)

    def closure(self, *targets: str) -> list[str]:
        """The targets and every manifest, table and digests file beneath them, but no weight folders.

        Named targets list all of it: a step that failed after its settings changed has lost its outputs, and only
        a target that names them makes Snakemake plan them again.
        """
        files: set[str] = set()
        for path in self.artifacts(*targets):
            if path.endswith((".parquet", ".html")):
                files |= {path, path.rsplit(".", 1)[0] + ".json"}
            else:
                files |= {path + ".json", path + ".sha256"}
        return sorted(files)

    def maker(self, path: str) -> tuple[str, dict[str, str]]:
        """The rule that makes the artifact at `path`, and its wildcards.

        Raises ConfigError for a path outside the grammar.
        """
        if path == self.report():
            return "build_report", {}
        inside = path.startswith(self.root + "/")
        parts = path.removeprefix(self.root + "/").removesuffix(".parquet").split("/") if inside else []
        match parts:
            case ["base", base, "model"]:
                kind = self.config["bases"][base]["kind"]
                return {"world": "make_base", "hub": "fetch_base"}.get(kind, "convert_base"), {"base": base}
            case ["source", block, source, "files"]:
                return "fetch_data", {"block": block, "source": source}
            case ["data", dataset]:
                return "curate_data", {"dataset": dataset}
            case ["data", dataset, "pairs", pairing]:
                return "select_pairs", {"dataset": dataset, "pairing": pairing}
            case ["data", _, "pairs", _, "reference", *scorer]:
                return _reference("/".join(parts[:4]), scorer)
            case ["prompts", prompts]:
                return "make_prompts", {"prompts": prompts}
            case ["reward", reward, "model"]:
                return "train_reward", {"reward": reward}
            case ["sft", sft, "policy"]:
                return f"{self.config['sft'][sft]['kind']}_sft", {"sft": sft}
            case ["runs", run, iteration, "policy"]:
                method = self.config["runs"][run]["method"]
                return f"train_{method}", {"run": run, "n": iteration.removeprefix("iter")}
            case ["sft", _, *tail] if tail:
                return self._beneath("/".join(parts[:2]), tail, path)
            case ["runs", _, _, *tail] if tail:
                return self._beneath("/".join(parts[:3]), tail, path)
        raise ConfigError(f"{path}: no artifact has this path. Hint: the Snakefile's first lines list all there are.")

    def _beneath(self, policy: str, tail: list[str], path: str) -> tuple[str, dict[str, str]]:
        """`maker` for what a policy generates; `tail` is the path beneath the policy."""
        match tail:
            case ["eval", benchmark]:
                return "evaluate", {"policy": policy, "benchmark": benchmark}
            case ["rollouts", sampling, prompts, *rest]:
                where = {"policy": policy, "sampling": sampling, "prompts": prompts}
                match rest:
                    case ["engine"]:
                        return "check_engine", where
                    case [shard]:
                        return "sample_rollouts", {**where, "shard": shard}
                    case ["rewards", reward, shard]:
                        verb = "score" if self.labeller(reward) else "verify"
                        return f"{verb}_rollouts", {**where, "reward": reward, "shard": shard}
                    case ["logprobs", *scorer, shard]:
                        return "score_logprobs", {**where, "scorer": "/".join(scorer), "shard": shard}
                    case ["pairs", reward, pairing]:
                        return "build_pairs", {**where, "reward": reward, "pairing": pairing}
                    case ["pairs", _, _, "reference", *scorer]:
                        return _reference("/".join([policy, *tail[:6]]), scorer)
        raise ConfigError(f"{path}: no artifact has this path. Hint: the Snakefile's first lines list all there are.")

    def inputs(self, path: str) -> list[str]:
        """The artifacts that the artifact at `path` is made from."""
        rule, own = self.maker(path)
        match rule:
            case "curate_data":
                return self.fetched("datasets", own["dataset"])
            case "make_prompts":
                return self.fetched("prompts", own["prompts"])
            case "train_sft" | "adopt_sft":
                block = self.config["sft"][own["sft"]]
                dataset = [self.dataset(block["dataset"])] if rule == "train_sft" else []
                return [self.base(block["base"]), *dataset]
            case "train_reward":
                block = self.config["rewards"][own["reward"]]
                return [self.model(block["init"]), self.dataset(block["dataset"]), self.dataset(block["heldout"])]
            case "sample_rollouts":
                return [self.policy(own["policy"]), self.prompts(own["prompts"])]
            case "score_rollouts" | "verify_rollouts" | "score_logprobs":
                shard = (
                    f"{self.root}/{own['policy']}/rollouts/{own['sampling']}/{own['prompts']}/{own['shard']}.parquet"
                )
                return [shard, *([self.policy(own["scorer"])] if "scorer" in own else self.labeller(own["reward"]))]
            case "check_engine":
                where = own["policy"], own["sampling"], own["prompts"]
                return [self.policy(own["policy"]), *self.rollouts(*where)]
            case "build_pairs":
                where = own["policy"], own["sampling"], own["prompts"]
                return [*self.rollouts(*where), *self.rewards(*where, own["reward"])]
            case "select_pairs":
                return [self.dataset(own["dataset"])]
            case "score_reference":
                return [f"{self.root}/{own['tail']}.parquet", self.policy(own["scorer"])]
            case "train_dpo":
                parts = self.pair_sources(own["run"], int(own["n"]))
                tables = [table for part in parts for table in (part.pairs, part.reference)]
                checks = self.engine_checks(own["run"], int(own["n"]))
                return [self.policy(self.start(own["run"], int(own["n"]))), *tables, *checks]
            case "train_raft":
                rollouts, rewards = self.best_of_sources(own["run"], int(own["n"]))
                checks = self.engine_checks(own["run"], int(own["n"]))
                return [self.policy(self.start(own["run"], int(own["n"]))), *rollouts, *rewards, *checks]
            case "evaluate":
                return self.evaluation_inputs(own["policy"], own["benchmark"])
            case "build_report":
                return self.report_inputs()
        return []  # bases and sources come from outside

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
        parts["engine_checks"] = self.engine_check(policy, *where)
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

    def report_inputs(self) -> list[str]:
        """What the report reads: every evaluation, on-policy pair table, check of an engine, and reward model."""
        pairs = [
            self.pairs_of(name, n)
            for name in self.runs_by("dpo")
            if self.config["runs"][name]["prompts"]
            for n in range(1, self.config["runs"][name]["iterations"] + 1)
        ]
        used = {own["reward"] for run in self.config["runs"].values() for own in [run, *run["each"].values()]}
        used |= {reward for block in self.config["evaluation"].values() for reward in block["rewards"]}
        models = [path for name in self.config["rewards"] if name in used for path in self.labeller(name)]
        steps = [(name, n) for name, run in self.config["runs"].items() for n in range(1, run["iterations"] + 1)]
        checks = [table for name, n in steps for table in self.engine_checks(name, n)]
        where = [(block["sampling"], f"{block['prompts']}-1") for block in self.config["evaluation"].values()]
        checks += [table for policy in self.policies() for at in where for table in self.engine_check(policy, *at)]
        return [*self.evaluations(), *dict.fromkeys(pairs), *dict.fromkeys(checks), *models]

    def report_manifests(self) -> list[str]:
        """The manifests that the report takes its numbers from: those of its inputs and of every policy."""
        artifacts = [*self.report_inputs(), *map(self.policy, self.policies())]
        return [f"{path.removesuffix('.parquet')}.json" for path in artifacts]

    def target(self, name: str, n: int = 1) -> list[str]:
        """The files of a named target (sft, reward, iterN_policy, evaluation, …), with their closure.

        iterN_weights is iterN_policy with the folder itself, which may have been pruned.

        Raises ConfigError for an iteration that the chosen run does not have.
        """
        asked = self._target(name, self.config["run"], n)
        # Weights are asked for by name alone; nothing else that a person types needs the folders themselves.
        return [*self.closure(*asked), *(asked if name == "weights" else [])]

    def asked(self, target: str) -> list[str]:
        """The artifacts that a target of the command line ends in: a named one (iter3_policy), or a file by its path.

        Raises ConfigError for anything else.
        """
        numbered = re.fullmatch(r"iter([0-9]+)_([a-z]+)", target)
        if numbered:
            return self._target(numbered[2], self.config["run"], int(numbered[1]))
        if "/" in target:
            return [self.artifact(target)]
        return self._target(target, self.config["run"], 1)

    def artifact(self, path: str) -> str:
        """The artifact that a file is a part of: `path` itself, or what its manifest or its digests belong to."""
        stem = re.sub(r"\.(json|sha256|parquet|html)$", "", path.rstrip("/"))
        if f"{stem}.html" == self.report():
            return self.report()
        inside = stem.removeprefix(self.root + "/")
        folder = re.fullmatch(
            r"(base|reward)/[^/]+/model|source/[^/]+/[^/]+/files|(sft/[^/]+|runs/[^/]+/[^/]+)/policy", inside
        )
        return stem if folder else f"{stem}.parquet"

    def _target(self, name: str, run: str, n: int) -> list[str]:
        if name == "sft":
            return [self.policy(self.iteration(run, 0))]
        if name == "reward":
            return self.labeller(self.run(run, 1)["reward"]) if self.run(run, 1)["reward"] else []
        if name in ("policy", "weights"):
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
        raise ConfigError(f"no target {name!r}. Hint: `snakemake --list-rules` names them; a file is one too.")
