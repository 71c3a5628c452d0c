"""One policy's evaluation on held-out prompts: per response in the table, summarised in the manifest.

Greedy and sampled responses are summarised separately ("greedy" is temperature 0, "sampled" all others). For each
labeller: mean reward and win rate against the SFT policy's responses to the same prompts; a win rate compares every
sampled response with every one of the SFT policy's, and ties count half.

KL to the SFT policy is the plain Monte Carlo estimate (k1 in Schulman, "Approximating KL divergence", 2020): the mean
over sampled responses of log π − log π_SFT, in nats per response, so single responses may be negative. It estimates the
KL of what is sampled only at temperature 1, since other temperatures sample from another distribution. Both terms come
from the trainer's forward pass in one dtype: if another engine sampled, log π is not the engine's own but the one that
the engine check computed, since a rounding difference of 0.05 nats per token is 17 nats over 350 tokens.
"""

import sys
from typing import Any

from scripts.lib.data import gates, tables
from scripts.lib.data.schemas.engine_check import ENGINE_CHECK
from scripts.lib.data.schemas.evaluation import EVALUATION
from scripts.lib.data.schemas.logprobs import LOGPROBS
from scripts.lib.data.schemas.rewards import REWARDS
from scripts.lib.data.schemas.rollouts import ROLLOUTS
from scripts.lib.kinds import families
from scripts.lib.kinds.evaluation import Evaluate
from scripts.lib.stage import contract
from scripts.lib.stage.artifact import canonical_json
from scripts.lib.stage.errors import InputError

Row = dict[str, Any]
INPUTS = ("rollouts*", "rewards*", "logprobs*", "sft-rewards*", "engine-checks*")
MODES = ("sampled", "greedy")


def reward_tables(job: contract.Job[Evaluate], name: str) -> dict[str, dict[tuple[str, int], float]]:
    """(prompt_id, k) → reward for each labeller, from the shards of all labellers in order."""
    paths, labellers = job.inputs[name], job.settings.rewards
    shards = len(job.inputs["rollouts"])
    rewards = {}
    for i, labeller in enumerate(labellers):
        table = tables.read_table(paths[i * shards : (i + 1) * shards], REWARDS)
        rewards[labeller] = {(row["prompt_id"], row["k"]): row["reward"] for row in table.to_dicts()}
    return rewards


def own_logprobs(job: contract.Job[Evaluate], rows: list[Row]) -> dict[tuple[str, int], float]:
    """(prompt_id, k) → log π of a response by the trainer's forward pass."""
    checked = job.inputs["engine_checks"]
    if not checked:  # transformers sampled, and the trainer's forward pass gave what it recorded
        return {(row["prompt_id"], row["k"]): row["logprob"] for row in rows}
    table = tables.read_table(checked, ENGINE_CHECK).to_dicts()
    return {(row["prompt_id"], row["k"]): row["trainer_logprob"] for row in table}


def run(job: contract.Job[Evaluate]) -> None:
    """Join a policy's evaluation rollouts with their rewards and summarise them."""
    rows = tables.read_table(job.inputs["rollouts"], ROLLOUTS).to_dicts()
    if not rows:
        raise InputError("no responses to evaluate.\nHint: every prompt was too long; raise max_prompt_tokens.")
    rewards = reward_tables(job, "rewards")
    sft_rewards = reward_tables(job, "sft_rewards") if job.inputs["sft_rewards"] else rewards
    scored = tables.read_table(job.inputs["logprobs"], LOGPROBS).to_dicts()
    reference = {(row["prompt_id"], row["k"]): row["logprob"] for row in scored}
    own = own_logprobs(job, rows)
    for row in rows:
        key = (row["prompt_id"], row["k"])
        try:
            row["rewards"] = {labeller: table[key] for labeller, table in rewards.items()}
            row["sft_rewards"] = {labeller: table[key] for labeller, table in sft_rewards.items()}
            # Without reference log-probabilities, the policy is the SFT policy itself.
            row["kl"] = own[key] - reference[key] if job.inputs["logprobs"] else 0.0
        except KeyError as error:
            raise InputError(
                f"prompt {key[0]}, response {key[1]}: not in every table of rewards and log-probabilities.\n"
                "Hint: they belong to other rollouts; delete them and run Snakemake."
            ) from error
    summary = families.load("benchmarks", job.settings.benchmark).summary
    job.metrics = {
        mode: summary(chosen, job.settings)
        for mode in MODES
        if (chosen := [row for row in rows if (row["temperature"] > 0) == (mode == "sampled")])
    }
    warnings = gates.of_evaluation(next(iter(job.metrics.values())), job.settings)
    option = f"stop_on_warnings of evaluation.{job.output.stem}"
    gates.tell(job, warnings, job.settings.stop_on_warnings, option)
    job.counts = {"prompts": len({row["prompt_id"] for row in rows}), "responses": len(rows)}
    columns = list(EVALUATION)
    table = [
        {**{c: row[c] for c in columns if c != "rewards"}, "rewards": canonical_json(row["rewards"])} for row in rows
    ]
    tables.write_table(job.output, table, EVALUATION, ("prompt_id", "k"))
    best = job.settings.rewards[0]
    parts = [f"{mode} {best} {job.metrics[mode]['rewards'][best]['mean']:.3f}" for mode in job.metrics]
    job.note = ", ".join(parts) + f", KL {job.metrics[next(iter(job.metrics))]['kl']['mean']:.2f}"


def main(argv: list[str] | None = None) -> int:
    """Command line; see `--help`."""
    return contract.execute("evaluate", run, Evaluate, INPUTS, argv)


if __name__ == "__main__":
    sys.exit(main())
