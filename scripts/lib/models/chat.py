"""Messages to token ids and back: the one module through which every stage tokenises.

Token ids are canonical and text is for people. A prompt is rendered by the tokenizer's chat template with the
header of the assistant's turn; a completion is what the template puts after it, up to and including the
end-of-turn token. Rendered text is tokenised without adding special tokens, so there is exactly one BOS wherever
the template writes one, in training and in generation alike.
"""

from functools import cache
from typing import Any

from scripts.lib.stage.errors import InputError

Messages = list[dict[str, str]]


def render(tokenizer: Any, messages: Messages, *, answer_next: bool) -> str:
    """The chat template's text for messages; with `answer_next` it ends with the header of the assistant's turn."""
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer_next))


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids of rendered text; nothing is added."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def prompt_ids(tokenizer: Any, messages: Messages) -> list[int]:
    """Token ids that a policy answers to."""
    return encode(tokenizer, render(tokenizer, messages, answer_next=True))


@cache
def end_of_turn(tokenizer: Any) -> int:
    """The token that the chat template writes after an assistant's words.

    It is not always the tokenizer's eos: base-derived tokenizers have `<|end_of_text|>` there while the turn ends
    in `<|eot_id|>`. Raises InputError for a template that closes no turn.
    """
    question = [{"role": "user", "content": "a"}]
    answered = render(tokenizer, [*question, {"role": "assistant", "content": "a"}], answer_next=False)
    opened = render(tokenizer, question, answer_next=True)
    if not answered.startswith(opened + "a"):
        raise InputError(
            f"chat template: an answer does not follow its prompt unchanged: {answered!r} against {opened!r}\n"
            "Hint: use a template whose generation prompt is a prefix of the answered conversation."
        )
    tail = encode(tokenizer, answered.removeprefix(opened + "a"))
    if not tail:
        raise InputError("chat template: nothing closes the assistant's turn.\nHint: end it with an end-of-turn token.")
    return tail[0]


def stop_ids(tokenizer: Any, generation_config: Any = None) -> list[int]:
    """Every token that ends a response: the template's end of turn, the tokenizer's eos, the model's own list."""
    listed = getattr(generation_config, "eos_token_id", None)
    own = listed if isinstance(listed, list) else [listed]
    found = [end_of_turn(tokenizer), tokenizer.eos_token_id, *own]
    return list(dict.fromkeys(token for token in found if token is not None))


def completion_ids(tokenizer: Any, messages: Messages, answer: str, opened: str | None = None) -> list[int]:
    """Token ids of an answer to messages, ending with the end-of-turn token.

    What the template writes after the end of turn (a line break, say) is left out: the policy never writes it.
    `opened` is the rendered prompt, for a caller that has many answers to the same one.
    """
    opened = opened or render(tokenizer, messages, answer_next=True)
    closed = render(tokenizer, [*messages, {"role": "assistant", "content": answer}], answer_next=False)
    return _completion(tokenizer, opened, closed)


def _completion(tokenizer: Any, opened: str, closed: str) -> list[int]:
    """Token ids of what `closed`, the rendered answered conversation, has after `opened`, the rendered prompt."""
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
            "Hint: let the template end every assistant turn with its end-of-turn token."
        )
    return ids[: len(ids) - ids[::-1].index(end)]


def conversation_ids(tokenizer: Any, messages: Messages) -> tuple[list[int], list[int]]:
    """(ids, mask) of a conversation that ends with an assistant's turn; mask is 1 on the assistant's own tokens.

    Every assistant turn counts, each up to and including its end of turn.
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
                "chat template: an earlier turn is rendered differently once the conversation goes on.\n"
                "Hint: use a template that renders each turn the same way wherever it stands."
            )
        between = encode(tokenizer, opened.removeprefix(rendered))
        closed = render(tokenizer, messages[: i + 1], answer_next=False)
        answer = _completion(tokenizer, opened, closed)
        ids += between + answer
        mask += [0] * len(between) + [1] * len(answer)
        # The text up to the end of turn comes from the template, not from decoding, which need not give it back.
        end = str(tokenizer.convert_ids_to_tokens(end_of_turn(tokenizer)))
        rendered = closed[: closed.rindex(end) + len(end)]
    return ids, mask


def without_special(tokenizer: Any, text: str) -> str:
    """A policy's words without any special token's name spelled out in them, which would be read as that token."""
    special = tokenizer.convert_ids_to_tokens(sorted(special_ids(tokenizer)))
    while found := [token for token in special if token in text]:
        text = text.replace(max(found, key=len), "")
    return text


def response_text(tokenizer: Any, token_ids: list[int], stops: list[int]) -> str:
    """The words of a response: its ids without the stop token, as text."""
    kept = token_ids[:-1] if token_ids and token_ids[-1] in stops else token_ids
    return str(tokenizer.decode(kept, skip_special_tokens=True)).strip()


@cache
def special_ids(tokenizer: Any) -> frozenset[int]:
    """The ids of a tokenizer's special tokens, with those that have no role, such as Llama 3's headers."""
    return frozenset({i for i, token in tokenizer.added_tokens_decoder.items() if token.special}) | frozenset(
        tokenizer.all_special_ids
    )


def trainable(tokenizer: Any, token_ids: list[int], stops: list[int]) -> bool:
    """Whether a response's words stand for exactly its tokens, so that what is judged is what would be trained on.

    They do not where a special token stands inside the response, where an id is none of the tokenizer's (embeddings
    are often padded), or where the ids are no whole characters.
    """
    kept = token_ids[:-1] if token_ids and token_ids[-1] in stops else token_ids
    if not special_ids(tokenizer).isdisjoint(kept) or any(not 0 <= token < len(tokenizer) for token in kept):
        return False
    words = tokenizer.decode(kept)
    return "\ufffd" not in words and tokenizer.decode(encode(tokenizer, words)) == words


def split_otherwise(tokenizer: Any, token_ids: list[int], stops: list[int]) -> bool:
    """Whether the tokenizer would cut a response's words into other tokens than those that were sampled."""
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
