"""Bootstrap intervals over prompts: the sampling unit is the prompt, not the response."""

import numpy as np


def interval(values: list[float], confidence: float, resamples: int, seed: int) -> dict[str, float]:
    """Mean of per-prompt values with its percentile bootstrap interval.

    For a paired comparison pass the per-prompt differences. Returns mean, low and high in the unit of the values.
    """
    data = np.asarray(values, dtype=np.float64)
    draws = np.random.default_rng(seed).integers(0, len(data), size=(resamples, len(data)))
    means = data[draws].mean(axis=1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return {"mean": float(data.mean()), "low": float(low), "high": float(high)}
