"""A few prompts with every policy's response side by side. What is shown here was written by models and data sets."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from scripts.lib.data import tables
from scripts.lib.data.schemas.evaluation import EVALUATION
from scripts.lib.report.format import Excerpt, excerpt, number
from scripts.lib.report.policies import Policy
from scripts.lib.report.read import Benchmark, Run

SAMPLES = 5


class Turn(NamedTuple):
    """A message of a prompt."""

    role: str
    content: Excerpt


class Answer(NamedTuple):
    """One policy's response, with its reward by every labeller and its length."""

    policy: Policy
    response: Excerpt
    rewards: list[tuple[str, str]]
    tokens: int
    truncated: bool


class Sample(NamedTuple):
    """A prompt, and the responses to it in rows."""

    turns: list[Turn]
    rows: list[list[Answer]]


def of(runs: list[Run], policies: list[Policy], benchmark: Benchmark) -> list[Sample]:
    """The first SAMPLES prompts by their ids, with every policy's first response."""
    prompts: list[str] = []
    responses: dict[str, dict[str, dict[str, Any]]] = {}
    for policy, path in benchmark.tables.items():
        rows = _drawn(path, benchmark)
        prompts = prompts or sorted(rows["prompt_id"].unique().to_list())[:SAMPLES]
        first = rows.filter(pl.col("prompt_id").is_in(prompts)).sort("k").unique("prompt_id", keep="first")
        responses[policy] = {row["prompt_id"]: row for row in first.to_dicts()}
    named = {policy.path: policy for policy in policies}

    def answers(prompt: str, paths: list[str]) -> list[Answer]:
        there = [path for path in paths if prompt in responses[path]]
        return [_answer(named[path], responses[path][prompt], benchmark.labellers) for path in there]

    asked = next(iter(responses.values()))
    return [
        Sample(
            [Turn(turn["role"], excerpt(turn["content"])) for turn in asked[prompt]["messages"]],
            [answers(prompt, paths) for paths in _side_by_side(runs)],
        )
        for prompt in prompts
    ]


def _drawn(path: Path, benchmark: Benchmark) -> pl.DataFrame:
    """The rows that were sampled; all rows if none was."""
    rows = tables.read_table(path, EVALUATION)
    return rows.filter(pl.col("temperature") > 0) if benchmark.temperature else rows


def _side_by_side(runs: list[Run]) -> list[list[str]]:
    """The policies of each row: a row for each run."""
    # SFT policies and runs of one iteration share the first row: a row of its own would be mostly empty.
    first = list(dict.fromkeys(run.policies[0] for run in runs))
    first += [policy for run in runs if len(run.policies) == 2 for policy in run.policies[1:]]
    return [first, *(run.policies[1:] for run in runs if len(run.policies) > 2)]


def _answer(policy: Policy, row: dict[str, Any], labellers: list[str]) -> Answer:
    rewards = json.loads(row["rewards"])
    shown = [(name, number(rewards[name])) for name in labellers]
    return Answer(policy, excerpt(row["response"]), shown, row["tokens"], row["finish_reason"] == "length")
