"""A Bradley-Terry reward model: the value of its scalar head on the last token, in the model's own chat template."""

from typing import Any

from scripts.lib.data.rewards import Label
from scripts.lib.models import chat, forward, loading, scoring
from scripts.lib.stage.contract import Job


def label(job: Job[Any], rows: list[dict[str, Any]]) -> list[Label]:
    """Rewards of rollout rows by the job's input `model`, in batches of similar length.

    Spelled-out special tokens are removed from responses first; `special_tokens_removed` counts these responses.
    """
    device = loading.prepare(job.runtime)
    tokenizer = loading.load_tokenizer(job.input("model"))
    kernel = loading.attention(job, device)
    model = loading.load_reward(job.input("model"), job.settings.dtype, device, kernel).eval()
    messages = {row["prompt_id"]: row["messages"] for row in rows}
    prompts = {key: chat.render(tokenizer, turns, answer_next=True) for key, turns in messages.items()}
    prompt_ids = {key: chat.encode(tokenizer, text) for key, text in prompts.items()}
    answers = [chat.without_special(tokenizer, row["response"]) for row in rows]
    sequences = [
        prompt_ids[row["prompt_id"]]
        + chat.completion_ids(tokenizer, row["messages"], answer, prompts[row["prompt_id"]])
        for row, answer in zip(rows, answers)
    ]
    lengths = [len(ids) for ids in sequences]
    hint = "lower max_prompt_tokens or max_new_tokens in `samplings`, or start the reward model from another base."
    loading.refuse_beyond(job.input("model"), max(lengths, default=0), "the longest prompt and response", hint)
    rewards = scoring.score(
        job,
        lengths,
        lambda batch: forward.rewards(model, tokenizer, [sequences[i] for i in batch], device),
    )
    job.counts["special_tokens_removed"] = sum(answer != row["response"] for row, answer in zip(rows, answers))
    return [(reward, {}) for reward in rewards]
