"""How fast a step goes and how long it still takes, in words, now and then."""

import time
from datetime import timedelta

SECONDS_BETWEEN_LINES = 10.0


class Throughput:
    """Counts tokens since it was made; says so at most every ten seconds, and at the end."""

    def __init__(self) -> None:
        self.started = self._said = time.monotonic()
        self.tokens = self.rows = 0

    def line(self, tokens: int, rows: int, left: int) -> str | None:
        """Count `rows` just finished with so many tokens; `left` are to come. A line, or None if it is too soon."""
        now = time.monotonic()
        self.tokens, self.rows = self.tokens + tokens, self.rows + rows
        if now - self._said < SECONDS_BETWEEN_LINES and left:
            return None
        self._said = now
        rest = timedelta(seconds=round((now - self.started) / max(1, self.rows) * left))
        return f"{self.per_second():,.0f} tokens/s, {rest} left"

    def per_second(self) -> float:
        """Tokens per second since it was made."""
        return self.tokens / max(1e-9, time.monotonic() - self.started)
