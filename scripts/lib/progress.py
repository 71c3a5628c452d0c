"""What a step tells while it works."""

import sys


def progress(text: str) -> None:
    """One line of progress into the log."""
    print(text, file=sys.stderr, flush=True)
