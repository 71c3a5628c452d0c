"""Adapters: which rows become which examples, and under which reason the others are counted."""

from functools import partial

import pytest

from scripts.lib.data import curation
from scripts.lib.data.adapters import auto
from scripts.lib.data.examples import Example

parse = partial(curation.parse, adapter=auto)


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


Q, GOOD, BAD = [user("q")], [user("q"), assistant("good")], [user("q"), assistant("bad")]
HH = {"chosen": "\n\nHuman: q\n\nAssistant: good", "rejected": "\n\nHuman: q\n\nAssistant: bad"}


PREFERENCES = [
    HH,
    {"prompt": "q", "chosen": "good", "rejected": "bad"},
    {"prompt": " q\n", "chosen": " good", "rejected": "bad "},
    {"prompt": "\n\nHuman: q\n\nAssistant:", "chosen": " good", "rejected": " bad"},
    {"prompt": Q, "chosen": "good", "rejected": "bad"},
    {"prompt": Q, "chosen": [assistant("good")], "rejected": [assistant("bad")]},
    {"prompt": "q", "chosen": GOOD, "rejected": BAD, "messages": GOOD},
    {"chosen": GOOD, "rejected": BAD},
    {"messages": Q, "chosen": "good", "rejected": "bad"},
    {
        "chosen": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "good"}],
        "rejected": [{"from": "Human", "value": "q"}, {"from": "GPT", "value": "bad"}],
    },
]
CONVERSATIONS = [
    {"messages": GOOD},
    {"conversations": GOOD},
    {"prompt": "q", "response": "good"},
    {"prompt": Q, "completion": "good"},
]
PROMPTS = [
    {"prompt": "q"},
    {"messages": Q},
    {"prompt": Q},
    {"prompt": "q", "response": None},
    {"context_messages": Q, "context": "<|begin_of_text|>q", "id": "x"},
    {"prompt": "\n\nHuman: q\n\nAssistant: ", "answers": [{"answer": "a", "rank": 1.0}]},
]


@pytest.mark.parametrize("row", PREFERENCES)
def test_every_shape_of_a_preference_gives_the_same_example(row):
    assert parse(row, "preferences") == Example(Q, ("good", "bad"))
    assert parse(row, "conversations") == Example(Q, ("good",))
    assert parse(row, "prompts") == Example(Q, ())


@pytest.mark.parametrize("row", CONVERSATIONS)
def test_every_shape_of_a_conversation_gives_the_same_example(row):
    assert parse(row, "conversations") == Example(Q, ("good",))
    assert parse(row, "prompts") == Example(Q, ())
    assert parse(row, "preferences") == "malformed"


@pytest.mark.parametrize("row", PROMPTS)
def test_every_shape_of_a_prompt_gives_the_same_example(row):
    assert parse(row, "prompts") == Example(Q, ())


def test_prompts_of_several_turns_keep_the_assistants():
    turns = [user("a"), assistant("b"), user("c")]
    assert parse({"context_messages": turns}, "prompts") == Example(turns, ())


def ranks(*pairs):
    answers = [{"answer": answer, "model": "m", "rank": rank} for answer, rank in pairs]
    return {"prompt": "\n\nHuman: q\n\nAssistant: ", "answers": answers, "good_natured": True}


def test_of_ranked_answers_the_best_stands_against_the_worst():
    row = ranks(("middle", 2.0), ("good", 1.0), ("bad", 7.0), ("fine", 3.0))
    assert parse(row, "preferences") == Example(Q, ("good", "bad"), margin=6.0)
    assert parse(row, "conversations") == Example(Q, ("good",))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (ranks(("a", 1.0), ("b", 1.0)), "unranked"),
        (ranks(("a", 1.0)), "unranked"),
        (ranks(("a", 1.0), ("a", 2.0)), "identical"),
        (ranks(("a", 1.0), ("", 2.0)), "empty"),
        (ranks(("a", 1.0), ("b", None)), "malformed"),
        (ranks(("a", 1.0), (None, 2.0)), "malformed"),
        (ranks(), "malformed"),
        ({**ranks(("a", 1.0), ("b", 2.0)), "prompt": None}, "malformed"),
        ({"prompt": "q", "answers": "none"}, "malformed"),
        ({"prompt": "q", "answers": ["a", "b"]}, "malformed"),
    ],
)
def test_ranked_answers_that_give_no_pair_have_a_reason(row, reason):
    assert parse(row, "preferences") == reason


def test_several_turns_and_a_system_turn_are_kept_in_order():
    turns = [{"role": "system", "content": "s"}, user("a"), assistant("b"), user("c")]
    assert parse({"messages": [*turns, assistant("d")]}, "conversations") == Example(turns, ("d",))
    transcript = "\n\nHuman: a\n\nAssistant: b\nHuman: is inside the line\n\nHuman: c\n\nAssistant: d\n\ne"
    example = parse({"chosen": transcript, "rejected": transcript + "!"}, "preferences")
    assert example == Example([user("a"), assistant("b\nHuman: is inside the line"), user("c")], ("d\n\ne", "d\n\ne!"))


@pytest.mark.parametrize(
    ("row", "margin"),
    [
        ({"margin": 2}, 2.0),
        ({"chosen_score": 4.5, "rejected_score": 1}, 3.5),
        ({"score_chosen": 8, "score_rejected": 7}, 1.0),
        ({"margin": "2"}, None),
        ({"margin": float("nan")}, None),
        ({"margin": True}, None),
        ({"margin": 10**400}, None),
        ({"chosen_score": 4.5}, None),
    ],
)
def test_the_margin_is_the_annotators_score_difference_or_none(row, margin):
    assert parse({**HH, **row}, "preferences").margin == margin


@pytest.mark.parametrize("text", ["a <| b |> c", "<s", "if x < s > y", "<b>bold</b>", "[inst]", "a|b|c", "<|>"])
def test_what_only_looks_a_little_like_a_special_token_is_kept(text):
    assert parse({"prompt": text, "chosen": "good", "rejected": "bad"}, "preferences").messages == [user(text)]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (None, "malformed"),
        ([1], "malformed"),
        ({}, "malformed"),
        ({"chosen": "no transcript", "rejected": "neither"}, "malformed"),
        ({"chosen": "Title\n\nHuman: q\n\nAssistant: a", "rejected": HH["rejected"]}, "malformed"),
        ({"chosen": GOOD}, "malformed"),
        ({"chosen": 1, "rejected": 2, "prompt": "q"}, "malformed"),
        ({"prompt": "q", "chosen": "\ud800", "rejected": "b"}, "malformed"),
        ({"chosen": [{"role": "user", "content": [{"type": "text"}]}], "rejected": BAD}, "malformed"),
        ({"chosen": [*Q, {"role": "tool", "content": "x"}], "rejected": BAD}, "bad_roles"),
        ({"prompt": "q<|im_end|>", "chosen": "good", "rejected": "bad"}, "special_tokens"),
        ({"prompt": "q", "chosen": "good</s>", "rejected": "bad"}, "special_tokens"),
        ({"prompt": "q", "chosen": "good", "rejected": "[INST] bad"}, "special_tokens"),
        ({"chosen": HH["chosen"], "rejected": HH["chosen"] + " "}, "identical"),
        ({"chosen": GOOD, "rejected": [user("other"), assistant("bad")]}, "prompt_differs"),
        ({"prompt": "other", "chosen": GOOD, "rejected": BAD}, "prompt_differs"),
        ({"prompt": "q", "chosen": "good", "rejected": " \n"}, "empty"),
        ({"prompt": "", "chosen": "good", "rejected": "bad"}, "empty"),
        ({"chosen": [*Q, *GOOD], "rejected": [*Q, *BAD]}, "not_alternating"),
        ({"chosen": [*GOOD, user("x")], "rejected": [*GOOD, user("y")]}, "not_alternating"),
        ({"chosen": [assistant("a")], "rejected": [assistant("b")]}, "not_alternating"),
        ({"chosen": [{"role": "system", "content": "s"}], "rejected": [assistant("b")]}, "not_alternating"),
    ],
)
def test_what_does_not_fit_has_one_reason(row, reason):
    assert parse(row, "preferences") == reason


def test_an_unusable_answer_does_not_spoil_its_prompt():
    row = {"chosen": "\n\nHuman: q\n\nAssistant: ", "rejected": "\n\nHuman: q\n\nAssistant: bad"}
    assert parse(row, "preferences") == parse(row, "conversations") == "empty"
    assert parse(row, "prompts") == Example(Q, ())
