"""Readers of local files: what others publish, as prompts with no, one or two answers.

The files are untrusted text: JSON and parquet only, nothing is evaluated or unpickled. A row that does not fit is
neither an exception nor silently lost. It is counted under the first of these reasons that holds:

- malformed: not JSON, none of the known shapes, or not text where text must be
- bad_roles: a role that is not system, user or assistant under any usual name
- identical: chosen and rejected are the same
- prompt_differs: chosen, rejected and the prompt given with them do not share their context
- empty: a turn without words
- not_alternating: turns other than [system,] user, assistant, …, user, assistant
- too_long: more than max_characters
- outside_part: its first user message belongs to another part
- unranked: ranked answers of which no two differ in rank
- duplicate: the same prompt and answers stand in the files already
- beyond_size, other_slice: not among the rows that the settings ask for
"""

import gzip
import json
import math
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from scripts.lib.data import sources
from scripts.lib.data.tables import prompt_id
from scripts.lib.stage.artifact import canonical_json
from scripts.lib.stage.digest import text_sha256
from scripts.lib.stage.errors import InputError

Messages = list[dict[str, str]]

ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "chatbot": "assistant",
    "model": "assistant",
}
SUFFIXES = (".jsonl", ".json", ".parquet")


# Text that a common chat template's tokenizer would read as a token of its own: a turn that the data never had.
SPECIAL = re.compile(r"<\|[^|<>\s]{1,40}\|>|</?s>|<(?:bos|eos|pad|unk|(?:start|end)_of_turn)>|\[/?INST\]|<</?SYS>>")


@dataclass(frozen=True)
class Example:
    """A prompt and its answers: none for kind prompts, one for conversations, (chosen, rejected) for preferences.

    `messages` end with the user's turn. `margin` is the annotator's score difference, None if not given.
    """

    messages: Messages
    answers: tuple[str, ...]
    margin: float | None = None
    annotator: str = ""

    @cached_property
    def prompt_id(self) -> str:
        """16 hex digits that name the prompt, wherever it appears."""
        return prompt_id(self.messages)

    @cached_property
    def id(self) -> str:
        """16 hex digits that name the prompt together with its answers."""
        return text_sha256(canonical_json([self.messages, *self.answers]))[:16]

    @property
    def characters(self) -> int:
        """Length of all turns together, with the longest of the answers."""
        return sum(len(turn["content"]) for turn in self.messages) + max(map(len, self.answers), default=0)


class _Unfit(Exception):
    """Why a row does not fit; never leaves this module."""


# Files to rows


def rows(path: Path) -> Iterator[object]:
    """The rows of one file in order; a line that is not JSON gives None. Blank lines are no rows.

    Takes .jsonl, .json (lines, or one array) and .parquet, each plain or gzip (recognised by its bytes). Raises
    InputError for another name and for a file that cannot be read at all.
    """
    kind = Path(path.name.removesuffix(".gz")).suffix
    if kind not in SUFFIXES:
        raise InputError(
            f"{path}: the name must end in one of {', '.join(SUFFIXES)}, with or without .gz\n"
            "Hint: let `pattern` match the data files only."
        )
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
        if kind == ".parquet":
            yield from _parquet_rows(path, zipped)
        else:
            yield from _json_rows(path, zipped, kind)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: {error}\nHint: the file is damaged or cut short; fetch it again.") from error


def _json_rows(path: Path, zipped: bool, kind: str) -> Iterator[object]:
    with gzip.open(path) if zipped else path.open("rb") as file:
        # Iterating over bytes splits at "\n" only: str.splitlines would also split inside strings, at U+2028.
        lines = iter(file)
        if kind == ".json":
            whole = file.read()
            if whole.lstrip().startswith(b"["):
                array = _json(whole)
                if not isinstance(array, list):
                    raise InputError(f"{path}: no JSON array, though it begins with '['\nHint: mend it, or use lines.")
                yield from array
                return
            lines = iter(whole.split(b"\n"))
        for line in lines:
            if line.strip():
                yield _json(line)


def _json(data: bytes) -> object:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _parquet_rows(path: Path, zipped: bool) -> Iterator[object]:
    try:
        table = pl.read_parquet(gzip.decompress(path.read_bytes()) if zipped else path)
    except pl.exceptions.PolarsError as error:
        raise InputError(f"{path}: {error}\nHint: the file is damaged or no parquet; fetch it again.") from error
    yield from table.iter_rows(named=True)


# Rows to examples


def parse(row: object, kind: str) -> Example | str:
    """One row as an example of `kind` (prompts, conversations or preferences), or the reason why it is none.

    Shapes: HH-RLHF's {chosen, rejected} transcripts; {messages}; {prompt, response} or {prompt, completion};
    {prompt, chosen, rejected} as texts or message lists; {chosen, rejected} as message lists; Nectar's {prompt,
    answers}, each with its rank; {context_messages} as prompts. Messages are {role, content} or ShareGPT's {from,
    value}. White space around a turn is dropped. Of a preference, prompts take the context and conversations the
    chosen answer.
    """
    try:
        if not isinstance(row, dict):
            raise _Unfit("malformed")
        if row.get("answers") is not None and kind != "prompts":
            row = _ranked(row)
        if kind == "preferences":
            return _preference(row)
        if kind == "conversations":
            turns = _checked(_conversation(row))
            return Example(turns[:-1], (turns[-1]["content"],))
        turns = _prompt(row)
        _checked([*turns, {"role": "assistant", "content": "any"}])
        return Example(turns, ())
    except _Unfit as reason:
        return str(reason)


def _preference(row: dict[str, Any]) -> Example:
    chosen, rejected = (_answered(row, side) for side in ("chosen", "rejected"))
    if chosen == rejected:
        raise _Unfit("identical")
    if chosen[:-1] != rejected[:-1]:
        raise _Unfit("prompt_differs")
    _checked(chosen)
    _checked(rejected)
    answers = (chosen[-1]["content"], rejected[-1]["content"])
    annotator = row.get("annotator")
    return Example(chosen[:-1], answers, _margin(row), annotator if isinstance(annotator, str) else "")


def _ranked(row: dict[str, Any]) -> dict[str, Any]:
    """Nectar's row as a preference: its best answer against its worst, as online pairs are made; 1 is the best rank.

    Which pair the paper's offline baseline took of the seven answers is not published. `margin` is the difference of
    the ranks.
    """
    answers = row["answers"]
    if not isinstance(answers, list) or not all(isinstance(answer, dict) for answer in answers):
        raise _Unfit("malformed")
    ranks = [_number(answer.get("rank")) for answer in answers]
    known = [rank for rank in ranks if rank is not None]
    if not known or len(known) < len(ranks):
        raise _Unfit("malformed")
    best, worst = min(known), max(known)
    if best == worst:
        raise _Unfit("unranked")
    chosen, rejected = (answers[ranks.index(rank)].get("answer") for rank in (best, worst))
    if not isinstance(chosen, str) or not isinstance(rejected, str):
        raise _Unfit("malformed")
    return {"prompt": row.get("prompt"), "chosen": chosen, "rejected": rejected, "margin": worst - best}


def _margin(row: dict[str, Any]) -> float | None:
    if _number(row.get("margin")) is not None:
        return _number(row["margin"])
    for names in (("chosen_score", "rejected_score"), ("score_chosen", "score_rejected")):
        chosen, rejected = (_number(row.get(name)) for name in names)
        if chosen is not None and rejected is not None:
            return chosen - rejected
    return None


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _conversation(row: dict[str, Any]) -> Messages:
    for name in ("response", "completion", "chosen"):
        if row.get(name) is not None:
            return _answered(row, name)
    return _turns(_first(row, "messages", "conversations"))


def _prompt(row: dict[str, Any]) -> Messages:
    if any(row.get(name) is not None for name in ("response", "completion", "chosen")):
        turns = _conversation(row)
    elif (given := _first(row, "messages", "conversations", "context_messages")) is not None:
        turns = _turns(given)
    else:
        turns = _context(row.get("prompt"))
    return turns[:-1] if turns and turns[-1]["role"] == "assistant" else turns


def _answered(row: dict[str, Any], name: str) -> Messages:
    """The context of a row and the answer that stands under `name`, as one conversation."""
    answer, given = row.get(name), _first(row, "prompt", "messages", "conversations")
    if given is None:
        return _turns(answer)
    context = _context(given)
    if isinstance(answer, str):
        return [*context, {"role": "assistant", "content": _text(answer)}]
    turns = _turns(answer)
    if turns and turns[0]["role"] == "assistant":
        return [*context, *turns]
    # Some sets repeat the whole conversation beside a prompt that holds its first or its last turns.
    if context not in (turns[:-1][: len(context)], turns[:-1][-len(context) :]):
        raise _Unfit("prompt_differs")
    return turns


def _first(row: dict[str, Any], *names: str) -> object:
    return next((row[name] for name in names if row.get(name) is not None), None)


def _context(prompt: object) -> Messages:
    """A prompt as messages: plain text is one user turn; a transcript may end with an open assistant turn."""
    if isinstance(prompt, str) and not prompt.startswith("\n\nHuman:"):
        return [{"role": "user", "content": _text(prompt)}]
    turns = _turns(prompt)
    return turns[:-1] if turns and turns[-1] == {"role": "assistant", "content": ""} else turns


def _turns(value: object) -> Messages:
    if isinstance(value, str):
        return _transcript(value)
    if not isinstance(value, list) or not value:
        raise _Unfit("malformed")
    turns = []
    for turn in value:
        if not isinstance(turn, dict):
            raise _Unfit("malformed")
        role, content = _first(turn, "role", "from"), _first(turn, "content", "value")
        if not isinstance(role, str) or not isinstance(content, str):
            raise _Unfit("malformed")
        if role.strip().lower() not in ROLES:
            raise _Unfit("bad_roles")
        turns.append({"role": ROLES[role.strip().lower()], "content": _text(content)})
    return turns


def _transcript(text: str) -> Messages:
    """HH-RLHF's published form: turns that begin with "\\n\\nHuman:" or "\\n\\nAssistant:"."""
    before, *parts = re.split(r"(?:^|\n\n)(Human|Assistant):", text)
    if before.strip() or not parts:
        raise _Unfit("malformed")
    return [{"role": ROLES[name.lower()], "content": _text(said)} for name, said in zip(parts[::2], parts[1::2])]


def _text(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        # JSON may escape half a surrogate pair, which no file can hold as UTF-8.
        raise _Unfit("malformed") from None
    if SPECIAL.search(value):
        raise _Unfit("special_tokens")
    return value.strip()


def _checked(turns: Messages) -> Messages:
    """The turns, if they are [system,] user, assistant, … user, assistant and none is empty."""
    if not all(turn["content"] for turn in turns):
        raise _Unfit("empty")
    roles = [turn["role"] for turn in turns]
    spoken = roles[1:] if roles[:1] == ["system"] else roles
    if not spoken or spoken != ["user", "assistant"] * (len(spoken) // 2):
        raise _Unfit("not_alternating")
    return turns


# Files to examples


def share(messages: Messages) -> float:
    """Where a prompt falls in [0, 1): by the digest of its first user message, so parts share no first message."""
    first = next(turn["content"] for turn in messages if turn["role"] == "user")
    # 52 bits, which a float holds exactly: more could round up to 1.
    return int(text_sha256(first)[:13], 16) / 16**13


def read(paths: list[Path], kind: str, settings: dict[str, Any]) -> tuple[list[tuple[str, Example]], Counter[str]]:
    """Every (file name, example) of `kind` in digest order, each once, and counts: rows_in and dropped_REASON.

    `settings` has part, max_characters, drop_system for data sets, and for local files the expected `SHA-256  name`
    lines (`files`); what came from a hub has its digests beside it. Rows that had a system turn are counted as
    system_turns where it is dropped. The order depends on the examples alone, not on files or lines. Raises InputError
    if the files' bytes are not those that were planned.
    """
    if "files" in settings:
        sources.verify(paths, settings["files"])
    drop_system = settings.get("drop_system", False)
    low, high = settings["part"]
    counts: Counter[str] = Counter(rows_in=0)
    found: list[tuple[str, Example]] = []
    for path in paths:
        for row in rows(path):
            counts["rows_in"] += 1
            example = parse(row, kind)
            if drop_system and isinstance(example, Example) and example.messages[0]["role"] == "system":
                counts["system_turns"] += 1
                example = replace(example, messages=example.messages[1:])
            if isinstance(example, str):
                counts[f"dropped_{example}"] += 1
            elif settings["max_characters"] is not None and example.characters > settings["max_characters"]:
                counts["dropped_too_long"] += 1
            elif not low <= share(example.messages) < high:
                counts["dropped_outside_part"] += 1
            else:
                found.append((path.name, example))
    found.sort(key=lambda item: (item[1].prompt_id, item[1].id, item[0], item[1].annotator, item[1].margin or 0.0))
    kept = [item for i, item in enumerate(found) if i == 0 or item[1].id != found[i - 1][1].id]
    if len(kept) < len(found):
        counts["dropped_duplicate"] = len(found) - len(kept)
    return kept, counts


def shortfall(found: int, wanted: int, counts: Counter[str]) -> InputError:
    """The error for too few rows, with the counts that explain it."""
    return InputError(
        f"source: {found} rows fit, {wanted} are wanted; counts: {dict(counts)}\n"
        "Hint: lower `size`, widen `part`, raise `max_characters`, or name more files."
    )
