"""The five extensions of CONTRIBUTING.md, as an author would write them: edits of a checkout, file by file."""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Extension:
    """New files by path, and edits of files: (text, what takes its place)."""

    new: dict[str, str] = field(default_factory=dict)
    edits: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    overlay: str = ""

    @property
    def files(self) -> set[str]:
        """The files of the project that the extension touches; its overlay is the user's."""
        return {*self.new, *self.edits}

    def apply(self, checkout: Path) -> None:
        """Write it into a checkout."""
        for name, text in self.new.items():
            assert not (checkout / name).exists(), name
            (checkout / name).write_text(text)
        for name, replacements in self.edits.items():
            text = (checkout / name).read_text()
            for before, after in replacements:
                assert text.count(before) == 1, (name, before)
                text = text.replace(before, after)
            (checkout / name).write_text(text)


DATA_SHAPE = Extension(
    new={
        "scripts/lib/data/adapters/faq.py": '''"""Questions and answers as {q, a}."""

from scripts.lib.data.adapters import general
from scripts.lib.data.examples import Example, Unfit


def parse(row: object, kind: str) -> Example:
    """One row as an example. Raises Unfit for a row without both."""
    if not isinstance(row, dict) or not {"q", "a"} <= row.keys():
        raise Unfit("malformed")
    return general.parse({"prompt": row["q"], "response": row["a"]}, kind)
'''
    },
    overlay="datasets: {faq: {kind: files, type: conversations, path: faq.jsonl, adapter: faq}}\n",
)

LABELLER = Extension(
    new={
        "scripts/weigh_rollouts.py": '''"""Rewards of responses: their mean log-probability per token under a policy."""

import sys
from typing import Any

from scripts.lib.data import rewards
from scripts.lib.data.rewards import Label
from scripts.lib.kinds.rewards import WeighRollouts
from scripts.lib.models import loading, scoring
from scripts.lib.stage import contract


def label(job: contract.Job[WeighRollouts], rows: list[dict[str, Any]]) -> list[Label]:
    """Nats per token of every response."""
    device = loading.prepare(job.runtime)
    folder = job.input("scorer")
    kernel = loading.attention(job, device)
    model = loading.load_policy(folder, job.settings.dtype, device, kernel).eval()
    sequences = [(row["prompt_ids"], row["token_ids"]) for row in rows]
    sums = scoring.logprobs(job, model, loading.load_tokenizer(folder), sequences, device)
    return [(value / max(1, row["tokens"]), {}) for value, row in zip(sums, rows)]


def run(job: contract.Job[WeighRollouts]) -> None:
    """Label every response of one shard of rollouts."""
    rewards.write(job, label)


def main(argv: list[str] | None = None) -> int:
    """Command line; see `--help`."""
    return contract.execute("weigh_rollouts", run, WeighRollouts, ("scorer", "rollouts"), argv)


if __name__ == "__main__":
    sys.exit(main())
'''
    },
    edits={
        "scripts/lib/kinds/rewards.py": [
            (
                "Reward = Annotated[RewardBt | RewardVerifier, ",
                '''class RewardLikelihood(Block):
    """The mean log-probability per token under a policy."""

    stage: ClassVar[str] = "weigh_rollouts"
    has_model: ClassVar[bool] = False
    kind: Literal["likelihood"] = Field(description="Log-probability under a policy.")
    policy: str = Field(description="The policy that weighs: sft/NAME or runs/NAME/iterN.")


class WeighRollouts(Typed):
    """Rewards by log-probability."""


Reward = Annotated[RewardBt | RewardVerifier | RewardLikelihood, ''',
            )
        ],
        "scripts/lib/planning/cards/rollouts.py": [
            (
                '    Card(\n        name="verify_rollouts",',
                """    Card(
        name="weigh_rollouts",
        output=REWARDS,
        makes=labelled_by("weigh_rollouts"),
        inputs=lambda plan, wildcards: {
            "scorer": plan.policy(weighing(plan, wildcards)),
            "rollouts": shard(plan, wildcards),
        },
        settings=lambda plan, wildcards: WeighRollouts(dtype=plan.config.dtype),
        compute=Compute(kind="score", model=weighing, longest=longest, tokens=tokens),
    ),
    Card(
        name="verify_rollouts",""",
            ),
            (
                'FOLDER = "{policy}',
                '''def weighing(plan: Runs, wildcards: Wildcards) -> str:
    """The policy that weighs."""
    return getattr(plan.config.rewards[wildcards["reward"]], "policy")


FOLDER = "{policy}''',
            ),
            ("from scripts.lib.kinds.rewards import ", "from scripts.lib.kinds.rewards import WeighRollouts, "),
        ],
        "rules/rollouts.smk": [
            (
                "use rule stage as verify_rollouts with:",
                """use rule stage as weigh_rollouts with:
    input:
        unpack(inputs("weigh_rollouts")),
    output:
        artifact="<results>/{policy}/rollouts/{sampling}/{prompts}/rewards/{reward}/{shard}.parquet",
        manifest="<results>/{policy}/rollouts/{sampling}/{prompts}/rewards/{reward}/{shard}.json",
    log:
        "<logs>/{policy}/rollouts/{sampling}/{prompts}/rewards/{reward}/{shard}.log",
    wildcard_constraints:
        **made_by("weigh_rollouts"),


use rule stage as verify_rollouts with:""",
            )
        ],
    },
    overlay="""
rewards: {likely: {kind: likelihood, policy: runs/raft/iter1}}
runs:
  judged:
    sft: tiny
    iterations: 1
    prompts: requests
    reward: likely
    sampling: best_of_8
    pairing: best_worst
    dpo: {max_length: 128}
""",
)

BENCHMARK = Extension(
    new={
        "scripts/lib/benchmarks/brevity.py": '''"""How many responses are short, beside their rewards."""

from typing import Any

from scripts.lib.benchmarks import rewards
from scripts.lib.kinds.evaluation import Evaluate

SHORT = 8  # tokens


def summary(rows: list[dict[str, Any]], settings: Evaluate) -> dict[str, Any]:
    """The rewards' summary, and the share of short responses."""
    short = sum(row["tokens"] <= SHORT for row in rows) / len(rows)
    return rewards.summary(rows, settings) | {"short": short}
'''
    },
    overlay="evaluation: {short: {benchmark: brevity, prompts: heldout, sampling: evaluation, rewards: [gold]}}\n",
)

METHOD = Extension(
    new={
        "scripts/train_imitation.py": '''"""Supervised fine-tuning on every complete response, whatever its reward."""

import sys
from collections.abc import Iterator
from typing import Any

import polars as pl

from scripts.lib.data.responses import joined
from scripts.lib.kinds.runs import TrainImitation
from scripts.lib.stage import contract


def run(job: contract.Job[TrainImitation]) -> None:
    """Fine-tune a policy on its own responses."""
    from scripts.lib.models import loading, sft

    device = loading.prepare(job.runtime)
    table = joined(job).filter(pl.col("finish_reason") == "stop", pl.col("trainable"))[: job.settings.responses]
    tokenizer = loading.load_tokenizer(job.input("start"))

    def rows_of(some: pl.DataFrame) -> Iterator[dict[str, Any]]:
        for row in some.iter_rows(named=True):
            prompt, response = row["prompt_ids"], row["token_ids"]
            yield sft.row(prompt + response, [0] * len(prompt) + [1] * len(response))

    sft.fine_tune(job, job.input("start"), tokenizer, table, rows_of, device)
    job.note = f"{table.height} responses"


def main(argv: list[str] | None = None) -> int:
    """Command line; see `--help`."""
    return contract.execute("train_imitation", run, TrainImitation, ("start", "rollouts*", "rewards*"), argv)


if __name__ == "__main__":
    sys.exit(main())
'''
    },
    edits={
        "scripts/lib/kinds/runs.py": [
            (
                "class Mix(Block):",
                '''class Imitation(Finetuning):
    """SFT on a policy's own responses."""

    responses: Count = Field(default=64, description="How many responses to train on.")


class TrainImitation(Imitation, Finetuned):
    """One imitation step."""

    seed: int


class Mix(Block):''',
            ),
            ('method: Literal["dpo", "raft"]', 'method: Literal["dpo", "raft", "imitation"]'),
            (
                "    raft: Raft = Field(default_factory=Raft,",
                '    imitation: Imitation = Field(default_factory=Imitation, description="Settings of imitation.")\n'
                "    raft: Raft = Field(default_factory=Raft,",
            ),
            (
                "    raft: Annotated[Raft, OnlySet] | None",
                '    imitation: Annotated[Imitation, OnlySet] | None = Field(default=None, description="Changes.")\n'
                "    raft: Annotated[Raft, OnlySet] | None",
            ),
        ],
        "scripts/lib/planning/cards/policy.py": [
            (
                '    Card(\n        name="train_raft",',
                """    Card(
        name="train_imitation",
        output=OUTPUT,
        makes=by("imitation"),
        inputs=lambda plan, wildcards: {
            role: read for role, read in raft_inputs(plan, wildcards).items() if role != "engine_checks"
        },
        settings=lambda plan, wildcards: TrainImitation(
            **plan.seeded(imitation(plan, wildcards)), dtype=plan.config.dtype
        ),
        first=True,
        compute=Compute(
            kind="train",
            model=start,
            trainer=imitation,
            trainer_key=lambda wildcards: f"runs.{wildcards['run']}.imitation",
            longest=longest,
            tokens=lambda plan, wildcards: None,
            spreads=True,
        ),
    ),
    Card(
        name="train_raft",""",
            ),
            (
                'OUTPUT = "runs/',
                '''def imitation(plan: Runs, wildcards: Wildcards) -> Imitation:
    """The settings block of an imitation step."""
    return plan.run(*step(wildcards)).imitation


OUTPUT = "runs/''',
            ),
            ("from scripts.lib.kinds.runs import ", "from scripts.lib.kinds.runs import Imitation, TrainImitation, "),
        ],
        "rules/policy.smk": [
            (
                "use rule stage as train_raft with:",
                """use rule stage as train_imitation with:
    input:
        unpack(inputs("train_imitation")),
    output:
        artifact=directory("<results>/runs/{run}/iter{n}/policy"),
        digests="<results>/runs/{run}/iter{n}/policy.sha256",
        manifest="<results>/runs/{run}/iter{n}/policy.json",
    log:
        "<logs>/runs/{run}/iter{n}/policy.log",
    wildcard_constraints:
        **made_by("train_imitation"),


use rule stage as train_raft with:""",
            )
        ],
    },
    overlay="""
runs:
  mirror:
    {sft: tiny, iterations: 1, method: imitation, prompts: requests, reward: bt, sampling: best_of_8,
     imitation: {max_length: 128, batch_size: 32, responses: 32}}
""",
)

SETTING = Extension(
    edits={
        "scripts/lib/kinds/pairing.py": [
            (
                "    size: Count | None = Field(",
                '    longest: Count | None = Field(default=None, description="Longest response, tokens.")\n'
                "    size: Count | None = Field(",
            )
        ],
        "scripts/build_pairs.py": [
            (
                '    ranked = sorted(rows, key=lambda row: (-row["score"], row["k"]))\n',
                '    ranked = sorted(rows, key=lambda row: (-row["score"], row["k"]))\n'
                "    if settings.longest is not None:\n"
                '        ranked = [row for row in ranked if row["tokens"] <= settings.longest]\n',
            )
        ],
    },
    overlay="pairings: {short_pairs: {longest: 9}}\nruns: {brief: {sft: tiny, iterations: 1, prompts: requests, "
    "reward: bt, sampling: best_of_8, pairing: short_pairs, dpo: {max_length: 128}}}\n",
)

EXTENSIONS = {
    "a data set shape": DATA_SHAPE,
    "a labeller": LABELLER,
    "a benchmark": BENCHMARK,
    "a training method": METHOD,
    "a setting": SETTING,
}
