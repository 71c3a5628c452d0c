"""What sampling asks of an engine, and what the engine gives back."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Request:
    """One response to draw: the prompt's token ids, temperature (0 is greedy), top_p, and the response's own seed.

    `logprob` asks for the response's log-probability.
    """

    prompt_ids: list[int]
    temperature: float
    top_p: float
    max_new_tokens: int
    seed: int
    logprob: bool = False


@dataclass(frozen=True)
class Response:
    """Token ids up to and including the stop token, if any; log-probability in nats if requested, else None.

    `finish_reason` is `stop`, or `length` for a response that was cut off.
    """

    token_ids: list[int]
    finish_reason: str
    logprob: float | None


class Engine(Protocol):
    """A generation engine: `transformers` or `vllm`, one file each in scripts/lib/models/engines."""

    def generate(self, requests: Iterable[Request]) -> Iterator[dict[int, Response]]:
        """One response per request, keyed by the request's position, in batches as they are finished."""
