"""The shapes that most sets come in, told apart by their columns.

- {messages} or {conversations}: a conversation; {context_messages}: a prompt
- {prompt}, {prompt, response} or {prompt, completion}
- {prompt, chosen, rejected}, the answers as texts or as message lists
- {chosen, rejected} as message lists, or as HH-RLHF's transcripts

Messages are {role, content} or ShareGPT's {from, value}. A prompt is text, a transcript or a message list.
"""

import re
from typing import Any

from scripts.lib.data.examples import Example, Messages, Unfit, checked, number, role, text


def parse(row: object, kind: str) -> Example:
    """One row as an example of `kind`: prompts, conversations or preferences.

    Of a preference, prompts take the context and conversations the chosen answer. `margin` is the annotator's score
    difference. Raises Unfit for a row that is none.
    """
    if not isinstance(row, dict):
        raise Unfit("malformed")
    if kind == "preferences":
        return _preference(row)
    if kind == "conversations":
        turns = checked(_conversation(row))
        return Example(turns[:-1], (turns[-1]["content"],))
    turns = _prompt(row)
    checked([*turns, {"role": "assistant", "content": "any"}])
    return Example(turns, ())


def _preference(row: dict[str, Any]) -> Example:
    chosen, rejected = (_answered(row, side) for side in ("chosen", "rejected"))
    if chosen == rejected:
        raise Unfit("identical")
    if chosen[:-1] != rejected[:-1]:
        raise Unfit("prompt_differs")
    checked(chosen)
    checked(rejected)
    answers = (chosen[-1]["content"], rejected[-1]["content"])
    annotator = row.get("annotator")
    return Example(chosen[:-1], answers, _margin(row), annotator if isinstance(annotator, str) else "")


def _margin(row: dict[str, Any]) -> float | None:
    if number(row.get("margin")) is not None:
        return number(row["margin"])
    for names in (("chosen_score", "rejected_score"), ("score_chosen", "score_rejected")):
        chosen, rejected = (number(row.get(name)) for name in names)
        if chosen is not None and rejected is not None:
            return chosen - rejected
    return None


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
        return [*context, {"role": "assistant", "content": text(answer)}]
    turns = _turns(answer)
    if turns and turns[0]["role"] == "assistant":
        return [*context, *turns]
    # Some sets repeat the whole conversation beside a prompt that holds its first or its last turns.
    if context not in (turns[:-1][: len(context)], turns[:-1][-len(context) :]):
        raise Unfit("prompt_differs")
    return turns


def _first(row: dict[str, Any], *names: str) -> object:
    return next((row[name] for name in names if row.get(name) is not None), None)


def _context(prompt: object) -> Messages:
    """A prompt as messages: plain text is one user turn; a transcript may end with an open assistant turn."""
    if isinstance(prompt, str) and not prompt.startswith("\n\nHuman:"):
        return [{"role": "user", "content": text(prompt)}]
    turns = _turns(prompt)
    return turns[:-1] if turns and turns[-1] == {"role": "assistant", "content": ""} else turns


def _turns(value: object) -> Messages:
    if isinstance(value, str):
        return _transcript(value)
    if not isinstance(value, list) or not value:
        raise Unfit("malformed")
    turns = []
    for turn in value:
        if not isinstance(turn, dict):
            raise Unfit("malformed")
        speaker, said = _first(turn, "role", "from"), _first(turn, "content", "value")
        if not isinstance(speaker, str) or not isinstance(said, str):
            raise Unfit("malformed")
        turns.append({"role": role(speaker), "content": text(said)})
    return turns


def _transcript(value: str) -> Messages:
    """HH-RLHF's published form: turns that begin with "\\n\\nHuman:" or "\\n\\nAssistant:"."""
    before, *parts = re.split(r"(?:^|\n\n)(Human|Assistant):", value)
    if before.strip() or not parts:
        raise Unfit("malformed")
    return [{"role": role(speaker), "content": text(said)} for speaker, said in zip(parts[::2], parts[1::2])]
