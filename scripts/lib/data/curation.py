"""Files to examples: every row read by the adapter that the settings choose, and kept or counted.

Beside the reasons of examples.py a row is counted as dropped when it is one of these:

- too_long: more than max_characters
- outside_part: its first user message belongs to another part
- duplicate: the same prompt and answers stand in the files already
- beyond_size, other_slice: not among the rows that the settings ask for; the stages count these
"""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from scripts.lib.data import files, sources
from scripts.lib.data.examples import Example, Unfit, share
from scripts.lib.kinds import families
from scripts.lib.kinds.data import Curated, CurateFiles, PromptsOfFiles, Rows
from scripts.lib.stage.errors import InputError


def parse(row: object, kind: str, adapter: Any) -> Example | str:
    """One row as an example of `kind`, read by a module of adapters/, or the reason why it is none."""
    try:
        example: Example = adapter.parse(row, kind)
    except Unfit as reason:
        return str(reason)
    return example


def read(paths: list[Path], kind: str, settings: Rows) -> tuple[list[tuple[str, Example]], Counter[str]]:
    """Every (file name, example) of `kind` in digest order, each once, and counts: rows_in and dropped_REASON.

    Local files are checked against the digests in `settings`; what came from a hub has its digests beside it. Rows that
    had a system turn are counted as system_turns where it is dropped. The order depends on the examples alone, not on
    files or lines. Raises InputError if the files' bytes are not those that were planned.
    """
    if isinstance(settings, CurateFiles | PromptsOfFiles):
        sources.verify(paths, settings.files)
    adapter = families.load("adapters", settings.adapter)
    drop_system = isinstance(settings, Curated) and settings.drop_system
    low, high = settings.part
    counts: Counter[str] = Counter(rows_in=0)
    fitting: list[tuple[str, Example]] = []
    for path in paths:
        for row in files.rows(path):
            counts["rows_in"] += 1
            example = parse(row, kind, adapter)
            if drop_system and isinstance(example, Example) and example.messages[0]["role"] == "system":
                counts["system_turns"] += 1
                example = replace(example, messages=example.messages[1:])
            if isinstance(example, str):
                counts[f"dropped_{example}"] += 1
            elif settings.max_characters is not None and example.characters > settings.max_characters:
                counts["dropped_too_long"] += 1
            elif not low <= share(example.messages) < high:
                counts["dropped_outside_part"] += 1
            else:
                fitting.append((path.name, example))
    fitting.sort(key=lambda item: (item[1].prompt_id, item[1].id, item[0], item[1].annotator, item[1].margin or 0.0))
    kept = [item for i, item in enumerate(fitting) if i == 0 or item[1].id != fitting[i - 1][1].id]
    if len(kept) < len(fitting):
        counts["dropped_duplicate"] = len(fitting) - len(kept)
    return kept, counts


# Why most rows are lost → what helps. Every other reason is about the rows themselves.
REMEDIES = {
    "too_long": "raise `max_characters`",
    "outside_part": "widen `part`",
    "duplicate": "the same rows stand there several times; name more files",
    "special_tokens": "they hold a chat template's own tokens; name files of plain text",
    "malformed": "they are in no shape that `adapter` reads, or not of this `type`; look at the first ones",
}


def shortfall(fitting: int, wanted: int, counts: Counter[str]) -> InputError:
    """The error for too few rows, with the counts that explain it, and what helps against the largest loss."""
    dropped = {key.removeprefix("dropped_"): n for key, n in counts.items() if key.startswith("dropped_") and n}
    if not counts["rows_in"]:
        hint = "the files hold no rows; let `path` and `pattern` name others."
    elif dropped:
        most = max(dropped, key=lambda reason: dropped[reason])
        remedy = REMEDIES.get(most, "mend them, or name more files")
        lower = ", or lower `size`" if fitting else ""
        hint = f"most rows are lost as {most} ({dropped[most]} of {counts['rows_in']}): {remedy}{lower}."
    else:
        hint = "the files have no more: lower `size`, or name more files."
    return InputError(f"source: {fitting} rows fit, {wanted} are wanted; counts: {dict(counts)}\nHint: {hint}")
