"""What every policy is judged by."""

from typing import Annotated

from pydantic import Field

from scripts.lib.kinds.common import AsInteger, BelowOne, Block, Digests, Flag, Positive, Seed, member_of


class Evaluation(Block):
    """What every policy is judged by."""

    benchmark: Annotated[str, member_of("benchmarks")] = Field(
        default="rewards", description="How responses are judged: a file of scripts/lib/benchmarks by its name."
    )
    prompts: str = Field(
        description="A prompt set; its first slice is used. Sources that training names are refused; that other "
        "sources hold none of its prompts is not checked."
    )
    sampling: str = Field(description="An entry of `samplings`; it must record log-probabilities.")
    rewards: list[str] = Field(min_length=1, description="Labellers to report; the first is the headline.")
    confidence: BelowOne = Field(default=0.95, description="Level of the confidence intervals.")
    resamples: Annotated[int, Field(ge=100), AsInteger] = Field(
        default=2000, description="Bootstrap resamples over prompts."
    )
    seed: Seed = None
    max_kl: Positive | None = Field(
        default=50.0,
        description="KL to the SFT policy, nats per response, above which a policy is warned of; null warns of none.",
    )
    stop_on_warnings: Flag = Field(
        default=False,
        description="Whether an evaluation that warns fails instead: of the KL, of rewards that fell, or of responses "
        "that were cut off.",
    )


# Settings of stages


class Evaluate(Block):
    """One policy on held-out prompts."""

    benchmark: str
    rewards: list[str]
    confidence: float
    resamples: int
    seed: int
    max_kl: float | None
    stop_on_warnings: bool


class BuildReport(Block):
    """The report: (run, method, its policies in order), longest run first; labellers by benchmark."""

    preset: str
    runs: list[tuple[str, str, list[str]]]
    benchmarks: dict[str, list[str]]
    templates: Digests
