"""Examples: a prompt with no, one or two answers, and what every turn of it must be like.

A row that does not fit neither ends a step nor is silently lost. It is counted under the first of these reasons that
holds:

- malformed: not JSON, none of the known shapes, or not text where text must be
- unranked: ranked answers of which no two differ in rank
- bad_roles: a role that is not system, user or assistant under any usual name
- special_tokens: text that a common chat template's tokenizer would read as a token of its own
- identical: chosen and rejected are the same
- prompt_differs: chosen, rejected and the prompt given with them do not share their context
- empty: a turn without words
- not_alternating: turns other than [system,] user, assistant, …, user, assistant

curation.py adds those that depend on the settings.
"""

import math
import re
from dataclasses import dataclass
from functools import cached_property

from scripts.lib.data.tables import prompt_id
from scripts.lib.stage.artifact import canonical_json
from scripts.lib.stage.digest import text_sha256

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


class Unfit(Exception):
    """A row that is no example; its text is the reason under which it is counted, such as `malformed`."""


def role(name: str) -> str:
    """system, user or assistant, for any usual name of it. Raises Unfit for another one."""
    if name.strip().lower() not in ROLES:
        raise Unfit("bad_roles")
    return ROLES[name.strip().lower()]


def text(value: str) -> str:
    """What a turn says, without the white space around it.

    Raises Unfit for text that is no UTF-8 or holds a special token.
    """
    try:
        value.encode()
    except UnicodeEncodeError:
        # JSON may escape half a surrogate pair, which no file can hold as UTF-8.
        raise Unfit("malformed") from None
    if SPECIAL.search(value):
        raise Unfit("special_tokens")
    return value.strip()


def checked(turns: Messages) -> Messages:
    """The turns, if they are [system,] user, assistant, … user, assistant and none is empty; raises Unfit otherwise."""
    if not all(turn["content"] for turn in turns):
        raise Unfit("empty")
    roles = [turn["role"] for turn in turns]
    spoken = roles[1:] if roles[:1] == ["system"] else roles
    if not spoken or spoken != ["user", "assistant"] * (len(spoken) // 2):
        raise Unfit("not_alternating")
    return turns


def number(value: object) -> float | None:
    """A finite number as a float; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        converted = float(value)
    except OverflowError:
        return None
    return converted if math.isfinite(converted) else None


def share(messages: Messages) -> float:
    """Where a prompt falls in [0, 1): by the digest of its first user message, so parts share no first message."""
    first = next(turn["content"] for turn in messages if turn["role"] == "user")
    # 52 bits, which a float holds exactly: more could round up to 1.
    return int(text_sha256(first)[:13], 16) / 16**13
