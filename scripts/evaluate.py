"""One policy's evaluation on held-out prompts, per response in the table and in summary in the manifest.

Greedy and sampled responses are summarised apart ("greedy" is temperature 0, "sampled" all others). For each
labeller: mean reward and win rate against the SFT policy's responses to the same prompts; a win rate compares every
sampled response with every one of the SFT policy's, ties count half. KL to the SFT policy is the mean over sampled
responses of log π − log π_SFT, in nats per response; it is estimated at the sampling's own temperature only if that
is 1, since other temperatures draw from another distribution. Where vLLM has sampled, log π is its own; the check of
the engine is an input, so that no KL is told of an engine that sees another model.
"""

import sys
from typing import Any

from scripts.lib.data import tables
from scripts.lib.data.schemas.evaluation import EVALUATION
from scripts.lib.data.schemas.logprobs import LOGPROBS
from scripts.lib.data.schemas.rewards import REWARDS
from scripts.lib.data.schemas.rollouts import ROLLOUTS
from scripts.lib.stage import contract, families
from scripts.lib.stage.artifact import canonical_json
from scripts.lib.stage.errors import InputError

Row = dict[str, Any]
MODES = ("sampled", "greedy")


def reward_tables(job: contract.Job, name: str) -> dict[str, dict[tuple[str, int], float]]:
    """(prompt_id, k) → reward for each labeller, from the shards of all labellers in order."""
    paths, labellers = job.inputs[name], job.settings["rewards"]
    shards = len(job.inputs["rollouts"])
    found = {}
    for i, labeller in enumerate(labellers):
        table = tables.read_table(paths[i * shards : (i + 1) * shards], REWARDS)
        found[labeller] = {(row["prompt_id"], row["k"]): row["reward"] for row in table.to_dicts()}
    return found


def run(job: contract.Job) -> None:
    """Join a policy's evaluation rollouts with their rewards and summarise them."""
    rows = tables.read_table(job.inputs["rollouts"], ROLLOUTS).to_dicts()
    if not rows:
        raise InputError("no responses to evaluate.\nHint: every prompt was too long; raise max_prompt_tokens.")
    rewards = reward_tables(job, "rewards")
    sft_rewards = reward_tables(job, "sft_rewards") if job.inputs["sft_rewards"] else rewards
    scored = tables.read_table(job.inputs["logprobs"], LOGPROBS).to_dicts()
    reference = {(row["prompt_id"], row["k"]): row["logprob"] for row in scored}
    for row in rows:
        key = (row["prompt_id"], row["k"])
        try:
            row["rewards"] = {labeller: table[key] for labeller, table in rewards.items()}
            row["sft_rewards"] = {labeller: table[key] for labeller, table in sft_rewards.items()}
            # Without a table of reference log-probabilities the policy is the SFT policy itself.
            row["kl"] = row["logprob"] - reference[key] if job.inputs["logprobs"] else 0.0
        except KeyError as error:
            raise InputError(
                f"prompt {key[0]}, response {key[1]}: not in every rewards or logprobs table.\n"
                "Hint: they belong to other rollouts; delete them and run Snakemake."
            ) from error
    summary = families.load("benchmarks", job.settings["benchmark"]).summary
    job.metrics = {
        mode: summary(chosen, job.settings)
        for mode in MODES
        if (chosen := [row for row in rows if (row["temperature"] > 0) == (mode == "sampled")])
    }
    job.counts = {"prompts": len({row["prompt_id"] for row in rows}), "responses": len(rows)}
    columns = list(EVALUATION)
    table = [
        {**{c: row[c] for c in columns if c != "rewards"}, "rewards": canonical_json(row["rewards"])} for row in rows
    ]
    tables.write_table(job.output, table, EVALUATION, ("prompt_id", "k"))
    best = job.settings["rewards"][0]
    parts = [f"{mode} {best} {job.metrics[mode]['rewards'][best]['mean']:.3f}" for mode in job.metrics]
    job.note = ", ".join(parts) + f", KL {job.metrics[next(iter(job.metrics))]['kl']['mean']:.2f}"


def main(argv: list[str] | None = None) -> int:
    """Command line; see `--help`."""
    return contract.execute(
        "evaluate", run, ("rollouts*", "rewards*", "logprobs*", "sft-rewards*", "engine-checks*"), argv
    )


if __name__ == "__main__":
    sys.exit(main())
