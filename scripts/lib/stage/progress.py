"""What a step tells while it works."""

import contextlib
import sys
from typing import TextIO

from scripts.lib.stage import ranks


def progress(text: str) -> None:
    """One line of progress into the log, by the first of a step's processes."""
    if ranks.first():
        say(text, sys.stderr)


def say(text: str, stream: TextIO) -> None:
    """Print a text. An ASCII terminal shows escapes; a full disk or a closed terminal must not fail the step."""
    with contextlib.suppress(OSError, ValueError):  # ValueError: the stream is closed
        try:
            print(text, file=stream, flush=True)
        except UnicodeEncodeError:
            print(text.encode("ascii", "backslashreplace").decode("ascii"), file=stream, flush=True)
