"""What sampling asks of an engine, and what the engine gives back."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Request:
    """One response to draw: token ids to continue, temperature (0 is greedy), nucleus mass, its own seed.

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
    """Token ids up to and including the stop token if there is one, and log-probability in nats if asked for."""

    token_ids: list[int]
    finish_reason: str
    logprob: float | None


class Engine(Protocol):
    """What generates: `transformers` or `vllm`, one file each in scripts/lib/models/engines."""

    def generate(self, requests: Iterable[Request]) -> Iterator[dict[int, Response]]:
        """One response per request, each under its request's position, some at a time, as they are finished."""
