"""The path grammar: where every artifact lies beneath the results. Paths are strings, as Snakemake takes them.

The grammar stands at the top of the Snakefile. What a policy generates lies beneath that policy, so one rule set serves
every iteration, and runs that share a policy, a sampling or a labelling share the files.
"""

import math
import os
import re
from pathlib import Path

from scripts.lib.kinds.config import Config
from scripts.lib.kinds.data import Dataset, DatasetHub, Prompts, PromptsHub
from scripts.lib.stage.errors import ConfigError

NAME = "[a-z0-9_]+"
POLICY = rf"sft/{NAME}|runs/{NAME}/iter[1-9][0-9]*"
SET = rf"{NAME}-[1-9][0-9]*"
# What each wildcard of the grammar may be.
WILDCARDS = {
    "base": NAME,
    "benchmark": NAME,
    "block": "datasets|prompts",
    "dataset": NAME,
    "n": "[1-9][0-9]*",
    "pairing": NAME,
    "policy": POLICY,
    "prompts": SET,
    "quantized": "(nf4/)?",
    "reward": NAME,
    "run": NAME,
    "sampling": NAME,
    "scorer": POLICY,
    "sft": NAME,
    "shard": "[0-9]+",
    "source": rf"{NAME}(-[1-9][0-9]*)?",
    "tail": rf"data/{NAME}/pairs/{NAME}|({POLICY})/rollouts/{NAME}/{SET}/pairs/{NAME}/{NAME}",
}


def fields(path: str) -> list[str]:
    """The wildcards of a path, in order."""
    return re.findall(r"\{(\w+)\}", path)


def pattern(path: str) -> re.Pattern[str]:
    """The regular expression of a path with {wildcards}. Raises KeyError for a wildcard outside the grammar."""
    parts = re.split(r"\{(\w+)\}", path)
    groups = [f"(?P<{name}>{WILDCARDS[name]})" for name in parts[1::2]]
    texts = list(map(re.escape, parts[::2]))
    return re.compile("".join(text + group for text, group in zip(texts, [*groups, ""])))


def as_asked(path: str) -> str:
    """A path of the command line as Snakemake takes it: `./a` is `a`, and an absolute path stays as it is."""
    return path if Path(path).is_absolute() else os.path.relpath(path)


def is_folder(path: str) -> bool:
    """Whether an artifact is a folder of files, such as weights, and not one file."""
    return not path.endswith((".parquet", ".html", ".json"))


def manifest(path: str) -> str:
    """The manifest of an artifact."""
    return re.sub(r"\.(parquet|html)$", "", path) + ".json"


class Paths:
    """The paths of one configuration's artifacts."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.root = config.results

    def inside(self, path: str) -> str:
        """A path relative to the results."""
        return path.removeprefix(self.root + "/")

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
        given = self.source(block, source)
        if not isinstance(given, DatasetHub | PromptsHub):
            return []
        return [f"{self.root}/source/{block}/{name if '{n}' in given.repo else source}/files"]

    def source(self, block: str, name: str) -> Dataset | Prompts | None:
        """An entry of `datasets` or of `prompts`; None if there is none of this name."""
        return self.config.datasets.get(name) if block == "datasets" else self.config.prompts.get(name)

    def shards(self, prompts: str) -> list[int]:
        """Shard numbers of a prompt set SET-N: fixed blocks of its exact size.

        Raises ConfigError for a set that the configuration does not have.
        """
        name = prompts.rsplit("-", 1)[0]
        if name not in self.config.prompts:
            listed = ", ".join(self.config.prompts)
            raise ConfigError(f"prompt set {name!r} is not in the config. Hint: it has {listed}.")
        block = self.config.prompts[name]
        return list(range(math.ceil(block.size / block.shard_prompts)))

    def rollouts(self, policy: str, sampling: str, prompts: str) -> list[str]:
        """Shards of a policy's responses."""
        return [self.rollouts_shard(policy, sampling, prompts, shard) for shard in self.shards(prompts)]

    def rollouts_shard(self, policy: str, sampling: str, prompts: str, shard: int | str) -> str:
        """One shard of a policy's responses."""
        return f"{self.root}/{policy}/rollouts/{sampling}/{prompts}/{shard}.parquet"

    def engine(self, sampling: str) -> str:
        """The engine of a sampling."""
        return self.config.samplings[sampling].engine

    def engine_check(self, policy: str, sampling: str, prompts: str) -> list[str]:
        """The table that compares a policy's engine with the trainer; none where the trainer's own library samples."""
        block = self.config.samplings[sampling]
        if block.engine == "transformers" or not block.check_responses:
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

    def pairs(self, policy: str, sampling: str, prompts: str, reward: str, pairing: str) -> str:
        """Preference pairs made from a policy's responses."""
        return f"{self.root}/{policy}/rollouts/{sampling}/{prompts}/pairs/{reward}/{pairing}.parquet"

    def curated_pairs(self, dataset: str, pairing: str) -> str:
        """Preference pairs selected from a data set."""
        return f"{self.root}/data/{dataset}/pairs/{pairing}.parquet"

    def reference_pass(self, pairs: str, scorer: str, quantized: bool) -> str:
        """Reference log-probabilities of a table of pairs under a policy, as it is or in 4 bits."""
        return f"{pairs.removesuffix('.parquet')}/reference/{'nf4/' if quantized else ''}{scorer}.parquet"

    def evaluation(self, policy: str, benchmark: str) -> str:
        """One policy's evaluation on one benchmark."""
        return f"{self.root}/{policy}/eval/{benchmark}.parquet"

    def report(self) -> str:
        """The self-contained report."""
        return f"{self.root}/report.html"
