"""What a step tells while it works."""

import sys

from scripts.lib.stage import ranks


def progress(text: str) -> None:
    """One line of progress into the log, by the first of a step's processes."""
    if ranks.first():
        print(text, file=sys.stderr, flush=True)
