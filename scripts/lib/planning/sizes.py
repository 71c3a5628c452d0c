"""How much a step works through: rows, tokens at the expected lengths, and the longest sequence. Nothing is guessed."""

from scripts.lib.kinds.data import DatasetHub
from scripts.lib.planning.runs import Runs


def prompts(plan: Runs, name: str, shard: int | None = None) -> int:
    """Prompts of a set SET-N, or of one of its shards."""
    block = plan.config.prompts[name.rsplit("-", 1)[0]]
    return block.size if shard is None else min(block.shard_prompts, block.size - shard * block.shard_prompts)


def rows(plan: Runs, dataset: str) -> float | None:
    """Rows of a data set: its size, or the part that it takes of the rows that its hub's files should have."""
    block = plan.config.datasets[dataset]
    if block.size is not None or not isinstance(block, DatasetHub) or block.rows is None:
        return block.size
    first, last = block.part
    return float(round(block.rows * (last - first)))


def pairs(plan: Runs, path: str) -> float | None:
    """Pairs of a table at most: one for each prompt, or those of a data set, and no more than its pairing takes."""
    parts = plan.inside(path).removesuffix(".parquet").split("/")
    limit = plan.config.pairings[parts[-1]].size
    size = rows(plan, parts[1]) if parts[0] == "data" else prompts(plan, parts[parts.index("rollouts") + 2])
    known = [number for number in (size, limit) if number is not None]
    return min(known) if known else None


def room(plan: Runs, sampling: str) -> int:
    """Tokens of the longest prompt with the longest response."""
    block = plan.config.samplings[sampling]
    return block.max_prompt_tokens + block.max_new_tokens


def exchange(plan: Runs) -> float:
    """Expected tokens of a prompt with its response."""
    return plan.config.forecast.prompt_tokens + plan.config.forecast.response_tokens


def trained(plan: Runs, count: float | None, sides: int, longest: int, epochs: float) -> float | None:
    """Tokens of training on so many rows of `sides` sequences; None where the number of rows is unknown."""
    return None if count is None else float(count * sides * min(exchange(plan), longest) * epochs)


def responses(plan: Runs, name: str, sampling: str, shard: str, read: bool) -> float:
    """Tokens of the responses to one shard of prompts, with those of their prompts if they are `read` too."""
    block, expected = plan.config.samplings[sampling], plan.config.forecast
    written = min(expected.response_tokens, block.max_new_tokens)
    asked = min(expected.prompt_tokens, block.max_prompt_tokens) if read else 0
    return float(prompts(plan, name, int(shard)) * block.k * (written + asked))
