"""How responses become preference pairs."""

from typing import Literal

from pydantic import Field

from scripts.lib.kinds.common import Block, Count, NotNegative, Seed, Share, Typed


class Pairing(Block):
    """How responses become preference pairs."""

    strategy: Literal["max_min", "max_random", "max_max", "quantile"] = Field(
        default="max_min",
        description="Which response is rejected: the worst (max_min), a random other (max_random), the second best "
        "(max_max). The best is chosen. quantile takes both at given quantiles. Curated pairs are kept as given.",
    )
    chosen_quantile: Share = Field(
        default=1.0, description="Quantile of the chosen response; 1 is the best. For quantile only."
    )
    rejected_quantile: Share = Field(
        default=0.0, description="Quantile of the rejected response; 0 is the worst. For quantile only."
    )
    minimum_margin: NotNegative = Field(
        default=0.0, description="Pairs must differ by more than this in penalised reward."
    )
    length_penalty: NotNegative = Field(
        default=0.0,
        description="Subtracted from the reward per unit of length; the paper's concise variant is 0.001 per character "
        "(equation 9).",
    )
    length_unit: Literal["character", "token"] = Field(default="character", description="The unit of length.")
    size: Count | None = Field(
        default=None, description="At most this many pairs, the first in digest order; null keeps all."
    )
    seed: Seed = None


# Settings of stages


class BuildPairs(Pairing):
    """Pairs of a policy's own responses."""

    seed: int


class SelectPairs(Block):
    """Curated pairs."""

    size: int | None
    minimum_margin: float


class ScoreReference(Typed):
    """Reference log-probabilities of pairs."""

    quantization: Literal["nf4"] | None
