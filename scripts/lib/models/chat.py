"""Messages to token ids and back: every stage tokenises through this module.

Token ids are canonical; text is for people. A prompt is rendered by the tokenizer's chat template with the
header of the assistant's turn; a completion is what the template writes after that, up to and including the
end-of-turn token. Rendered text is tokenised without adding special tokens, so there is exactly one BOS where
the template writes one, in training and in generation alike.
"""

from functools import cache
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError

from scripts.lib.stage.errors import InputError

Messages = list[dict[str, str]]


def render(tokenizer: Any, messages: Messages, *, answer_next: bool) -> str:
    """The chat template's text for messages; with `answer_next` it ends with the header of the assistant's turn.

    Raises InputError for a template that is no Jinja, that fails on the messages, or that refuses them.
    """
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer_next))
    except (TemplateError, ArithmeticError, LookupError, RecursionError, TypeError, ValueError) as error:
        roles = ", ".join(message["role"] for message in messages)
        line = f", line {error.lineno}" if isinstance(error, TemplateSyntaxError) else ""
        raise InputError(
            f"chat template{line}: {type(error).__name__}: {error}; for turns {roles}\n"
            "Hint: mend the template, or name another by `chat_template` of the base; `drop_system` of a data set "
            "leaves out system turns, which some templates refuse."
        ) from error


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids of rendered text, without adding special tokens."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def prompt_ids(tokenizer: Any, messages: Messages) -> list[int]:
    """Token ids of the prompt that a policy continues: the messages and the header of the assistant's turn."""
    return encode(tokenizer, render(tokenizer, messages, answer_next=True))


@cache
def end_of_turn(tokenizer: Any) -> int:
    """The token that the chat template writes at the end of an assistant's turn.

    It is not always the tokenizer's eos: tokenizers of base models have `<|end_of_text|>` as eos while the turn
    ends in `<|eot_id|>`. Raises InputError for a template that does not close the turn.
    """
    question = [{"role": "user", "content": "a"}]
    answered = render(tokenizer, [*question, {"role": "assistant", "content": "a"}], answer_next=False)
    opened = render(tokenizer, question, answer_next=True)
    if not answered.startswith(opened + "a"):
        raise InputError(
            f"chat template: an answer changes its prompt: {answered!r} does not start with {opened!r} and the answer\n"
            "Hint: use a template whose generation prompt is a prefix of the answered conversation."
        )
    tail = encode(tokenizer, answered.removeprefix(opened + "a"))
    if not tail:
        raise InputError("chat template: nothing closes the assistant's turn.\nHint: end it with an end-of-turn token.")
    return tail[0]


def stop_ids(tokenizer: Any, generation_config: Any = None) -> list[int]:
    """Every token that ends a response: the template's end of turn, the tokenizer's eos, the model's own list."""
    listed = getattr(generation_config, "eos_token_id", None)
    of_model = listed if isinstance(listed, list) else [listed]
    stops = [end_of_turn(tokenizer), tokenizer.eos_token_id, *of_model]
    return list(dict.fromkeys(token for token in stops if token is not None))


def completion_ids(tokenizer: Any, messages: Messages, answer: str, opened: str | None = None) -> list[int]:
    """Token ids of an answer to messages, ending with the end-of-turn token.

    Whatever the template writes after the end of turn (a line break, say) is left out: the policy never generates it.
    `opened` is the rendered prompt; a caller with many answers to one prompt passes it to render it only once.
    """
    opened = opened or render(tokenizer, messages, answer_next=True)
    closed = render(tokenizer, [*messages, {"role": "assistant", "content": answer}], answer_next=False)
    return _completion(tokenizer, opened, closed)


def _completion(tokenizer: Any, opened: str, closed: str) -> list[int]:
    """Token ids of what follows `opened`, the rendered prompt, in `closed`, the rendered answered conversation."""
    if not closed.startswith(opened):
        raise InputError(
            f"chat template: the prompt {opened[-80:]!r} is not a prefix of the answered conversation.\n"
            "Hint: use a template whose generation prompt is a prefix of the answered conversation."
        )
    answer = closed.removeprefix(opened)
    ids = encode(tokenizer, answer)
    end = end_of_turn(tokenizer)
    if end not in ids:
        raise InputError(
            f"chat template: no end-of-turn token after the answer {answer[:80]!r}\n"
            "Hint: use a template that ends every assistant turn with its end-of-turn token."
        )
    return ids[: len(ids) - ids[::-1].index(end)]


def conversation_ids(tokenizer: Any, messages: Messages) -> tuple[list[int], list[int]]:
    """(ids, mask) of a conversation that ends with an assistant's turn; mask is 1 on the assistant's own tokens.

    Every assistant turn is masked in, up to and including its end-of-turn token.
    """
    ids: list[int] = []
    mask: list[int] = []
    rendered = ""
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        opened = render(tokenizer, messages[:i], answer_next=True)
        if not opened.startswith(rendered):
            raise InputError(
                "chat template: an earlier turn is rendered differently when later turns follow it.\n"
                "Hint: use a template that renders each turn the same way wherever it comes."
            )
        between = encode(tokenizer, opened.removeprefix(rendered))
        closed = render(tokenizer, messages[: i + 1], answer_next=False)
        answer = _completion(tokenizer, opened, closed)
        ids += between + answer
        mask += [0] * len(between) + [1] * len(answer)
        # Take the text up to the end of turn from the template: decoding the ids need not reproduce it.
        end = str(tokenizer.convert_ids_to_tokens(end_of_turn(tokenizer)))
        rendered = closed[: closed.rindex(end) + len(end)]
    return ids, mask


def without_special(tokenizer: Any, text: str) -> str:
    """A response's text without spelled-out special tokens, which would be tokenised as the tokens themselves."""
    special = tokenizer.convert_ids_to_tokens(sorted(special_ids(tokenizer)))
    while spelled_out := [token for token in special if token in text]:
        text = text.replace(max(spelled_out, key=len), "")
    return text


def response_text(tokenizer: Any, token_ids: list[int], stops: list[int]) -> str:
    """The text of a response: its ids decoded without the stop token and other special tokens, stripped."""
    kept = token_ids[:-1] if token_ids and token_ids[-1] in stops else token_ids
    return str(tokenizer.decode(kept, skip_special_tokens=True)).strip()


@cache
def special_ids(tokenizer: Any) -> frozenset[int]:
    """The ids of a tokenizer's special tokens, including those without a named role, such as Llama 3's headers."""
    return frozenset({i for i, token in tokenizer.added_tokens_decoder.items() if token.special}) | frozenset(
        tokenizer.all_special_ids
    )


def trainable(tokenizer: Any, token_ids: list[int], stops: list[int]) -> bool:
    """Whether a response's text round-trips through the tokenizer, so that what is judged is what is trained on.

    It does not if the response contains a special token, an id outside the tokenizer's vocabulary (embeddings are
    often padded), or ids that do not decode to whole characters. Re-encoding may split the same text into other
    tokens; see split_otherwise.
    """
    kept = token_ids[:-1] if token_ids and token_ids[-1] in stops else token_ids
    if not special_ids(tokenizer).isdisjoint(kept) or any(not 0 <= token < len(tokenizer) for token in kept):
        return False
    text = tokenizer.decode(kept)
    return "\ufffd" not in text and tokenizer.decode(encode(tokenizer, text)) == text


def split_otherwise(tokenizer: Any, token_ids: list[int], stops: list[int]) -> bool:
    """Whether the tokenizer splits a response's text into other tokens than those that were sampled."""
    kept = token_ids[:-1] if token_ids and token_ids[-1] in stops else token_ids
    return encode(tokenizer, tokenizer.decode(kept)) != kept


def pair_ids(tokenizer: Any, row: dict[str, Any]) -> tuple[list[int], list[int], list[int]]:
    """(prompt, chosen, rejected) ids of a pair: as sampled, or tokenised here for a curated one."""
    if row.get("prompt_ids") is not None:
        return row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]
    opened = render(tokenizer, row["messages"], answer_next=True)
    answers = (completion_ids(tokenizer, row["messages"], row[side], opened) for side in ("chosen", "rejected"))
    chosen, rejected = answers
    return encode(tokenizer, opened), chosen, rejected
