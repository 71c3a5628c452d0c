"""Rewards of a policy's responses by a trained reward model, in the reward model's own chat template.

Every response is scored, in batches of similar length; a truncated one is scored like any other and kept apart
later, when pairs are built.
"""

import sys

from scripts.lib import schemas, stage


def run(job: stage.Job) -> None:
    """Score every response of one shard of rollouts."""
    from scripts.lib import chat, models, scoring

    device = models.prepare(job.runtime)
    rows = schemas.read_table(job.input("rollouts"), schemas.ROLLOUTS).to_dicts()
    tokenizer = models.load_tokenizer(job.input("model"))
    kernel = models.attention(job, device)
    model = models.load_reward(job.input("model"), job.settings["dtype"], device, kernel).eval()
    messages = {row["prompt_id"]: row["messages"] for row in rows}
    prompts = {key: chat.render(tokenizer, turns, answer_next=True) for key, turns in messages.items()}
    prompt_ids = {key: chat.encode(tokenizer, text) for key, text in prompts.items()}
    answers = [chat.without_special(tokenizer, row["response"]) for row in rows]
    sequences = [
        prompt_ids[row["prompt_id"]]
        + chat.completion_ids(tokenizer, row["messages"], answer, prompts[row["prompt_id"]])
        for row, answer in zip(rows, answers)
    ]
    rewards = scoring.score(
        job,
        [len(ids) for ids in sequences],
        lambda batch: models.rewards(model, tokenizer, [sequences[i] for i in batch], device),
    )
    table = [
        {"prompt_id": row["prompt_id"], "k": row["k"], "reward": reward, "objectives": ""}
        for row, reward in zip(rows, rewards)
    ]
    cleaned = sum(answer != row["response"] for row, answer in zip(rows, answers))
    job.counts = {"rows_in": len(rows), "rows_out": len(table), "special_tokens_removed": cleaned}
    job.metrics = {"mean": sum(rewards) / max(1, len(rewards))}
    schemas.write_table(job.output, table, schemas.REWARDS, ("prompt_id", "k"))
    job.note = f"{len(table)} responses, mean reward {job.metrics['mean']:.3f}"


def main(argv: list[str] | None = None) -> int:
    """Command line; see `--help`."""
    return stage.execute("score_rollouts", run, ("model", "rollouts"), argv)


if __name__ == "__main__":
    sys.exit(main())
