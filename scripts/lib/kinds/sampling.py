"""How responses are drawn."""

from typing import Annotated

from pydantic import Field

from scripts.lib.kinds.common import Block, Count, Flag, Natural, NotNegative, PositiveShare, Seed, Typed, member_of


class Sampling(Block):
    """How responses are drawn."""

    engine: Annotated[str, member_of("engines")] = Field(
        default="transformers", description="What samples: a file of scripts/lib/models/engines by its name."
    )
    k: Count = Field(default=8, description="Responses per prompt.")
    temperatures: list[NotNegative] = Field(
        default=[1.0],
        min_length=1,
        description="K is split into equal blocks, one per temperature; 0 is greedy. The paper's mix is [1.0, 0.7].",
    )
    top_p: PositiveShare = Field(default=1.0, description="Nucleus sampling: the share of probability to draw from.")
    max_prompt_tokens: Count = Field(default=2048, description="Prompts that are longer are dropped and counted.")
    max_new_tokens: Count = Field(default=2048, description="Responses are cut off at this many tokens.")
    check_responses: Natural = Field(
        default=64,
        description="Responses of each shard whose log-probability vllm keeps, to be compared with the trainer's "
        "before it trains on the shard; 0 checks nothing.",
    )
    record_logprobs: Flag = Field(
        default=False,
        description="Keep each response's log-probability; evaluation needs it for the KL. Where vllm samples, all "
        "responses are then compared with the trainer, and the KL is the trainer's.",
    )
    seed: Seed = None


# Settings of stages


class SampleRollouts(Sampling, Typed):
    """One shard of a policy's responses: rows `first` to `first + prompts` of the prompt set."""

    check_responses: int = 0
    seed: int
    first: int
    prompts: int


class CheckEngine(Typed):
    """The engine that sampled against the trainer."""


class ScoreLogprobs(Typed):
    """Log-probabilities under another policy."""
