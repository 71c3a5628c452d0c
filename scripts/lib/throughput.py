"""How fast a step goes, in words, now and then."""

import time

SECONDS_BETWEEN_LINES = 10.0


class Throughput:
    """Counts tokens since it was made; says so at most every ten seconds, and at the end."""

    def __init__(self) -> None:
        self.started = self._said = time.monotonic()
        self.tokens = 0

    def line(self, tokens: int, done: int, total: int) -> str | None:
        """Count tokens of rows just finished; `done` of `total` rows are there. A line, or None if it is too soon."""
        now = time.monotonic()
        self.tokens += tokens
        if now - self._said < SECONDS_BETWEEN_LINES and done < total:
            return None
        self._said = now
        return f"{self.tokens / max(1e-9, now - self.started):,.0f} tokens/s"
