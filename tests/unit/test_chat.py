"""Messages to token ids and back, with real tokenizers of two template families."""

import pytest

from scripts.lib.data import sources
from scripts.lib.models import chat
from scripts.lib.stage.errors import InputError
from scripts.make_base import make_tokenizer

CHATML = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = "a sing song red green apple .".split()
ASK = [{"role": "user", "content": "sing a song"}]
TURNS = [
    {"role": "system", "content": "red"},
    {"role": "user", "content": "sing"},
    {"role": "assistant", "content": "red apple ."},
    {"role": "user", "content": "a song"},
    {"role": "assistant", "content": "green"},
]


def llama():
    return make_tokenizer(WORDS)


def chatml():
    """The same words, a line break after each end of turn, and the padding token that is also eos."""
    tokenizer = make_tokenizer([*WORDS, "\n"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>", "pad_token": "<|im_end|>"})
    tokenizer.chat_template = CHATML
    return tokenizer


def tokens(tokenizer, ids):
    return tokenizer.convert_ids_to_tokens(ids)


def both():
    return pytest.mark.parametrize(("make", "end"), [(llama, "<|eot_id|>"), (chatml, "<|im_end|>")])


def answered(messages, words):
    return [*messages, {"role": "assistant", "content": words}]


def ours():
    """The world's tokenizer, which has Llama 3's special tokens, with the template that we give Llama 3."""
    tokenizer = llama()
    tokenizer.chat_template = (sources.TEMPLATES / "llama3.jinja").read_text()
    return tokenizer


def test_our_llama_3_template_writes_one_bos_trims_and_is_a_prefix_of_what_follows():
    tokenizer = ours()
    spaced = [{**turn, "content": f" {turn['content']}\n"} for turn in TURNS]
    for i in range(1, len(TURNS) + 1):
        for answer_next in (False, True):
            text = chat.render(tokenizer, TURNS[:i], answer_next=answer_next)
            assert text == chat.render(llama(), TURNS[:i], answer_next=answer_next)
            assert text == chat.render(tokenizer, spaced[:i], answer_next=answer_next)
            assert text.count("<|begin_of_text|>") == 1
        assert chat.render(tokenizer, TURNS, answer_next=False).startswith(
            chat.render(tokenizer, TURNS[:i], answer_next=False)
        )
    ids, mask = chat.conversation_ids(tokenizer, TURNS)
    assert (ids, mask) == chat.conversation_ids(llama(), TURNS)
    assert chat.render(tokenizer, ASK, answer_next=True) == (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nsing a song<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert tokens(tokenizer, [chat.end_of_turn(tokenizer)]) == ["<|eot_id|>"]


# Ids


def test_a_prompt_ends_with_the_header_of_the_assistants_turn():
    tokenizer = llama()
    assert tokens(tokenizer, chat.prompt_ids(tokenizer, ASK)) == [
        "<|begin_of_text|>",
        *("<|start_header_id|>", "user", "<|end_header_id|>", "\n\n"),
        *("sing", "a", "song", "<|eot_id|>"),
        *("<|start_header_id|>", "assistant", "<|end_header_id|>", "\n\n"),
    ]


def test_a_completion_is_the_answer_and_its_end_of_turn():
    tokenizer = llama()
    assert tokens(tokenizer, chat.completion_ids(tokenizer, ASK, "red apple .")) == ["red", "apple", ".", "<|eot_id|>"]
    assert tokens(tokenizer, chat.completion_ids(tokenizer, ASK, "")) == ["<|eot_id|>"]


def test_there_is_exactly_one_bos_at_generation_and_in_training():
    tokenizer = llama()
    bos = tokenizer.bos_token_id
    assert chat.prompt_ids(tokenizer, ASK).count(bos) == 1
    assert chat.prompt_ids(tokenizer, ASK)[0] == bos
    assert chat.conversation_ids(tokenizer, answered(ASK, "red"))[0].count(bos) == 1
    row = {"prompt_ids": None, "messages": ASK, "chosen": "red", "rejected": "green"}
    prompt, chosen, rejected = chat.pair_ids(tokenizer, row)
    assert [ids.count(bos) for ids in (prompt, chosen, rejected)] == [1, 0, 0]


def test_there_is_one_bos_also_with_a_tokenizer_that_adds_its_own():
    from tokenizers.processors import TemplateProcessing

    tokenizer = llama()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", tokenizer.bos_token_id)]
    )
    assert tokenizer("a")["input_ids"].count(tokenizer.bos_token_id) == 1
    assert chat.prompt_ids(tokenizer, ASK).count(tokenizer.bos_token_id) == 1
    assert chat.conversation_ids(tokenizer, answered(ASK, "red"))[0].count(tokenizer.bos_token_id) == 1


def test_the_end_token_is_the_templates_and_not_the_tokenizers_eos():
    tokenizer = llama()
    assert tokens(tokenizer, [tokenizer.eos_token_id]) == ["<|end_of_text|>"]
    assert tokens(tokenizer, [chat.end_of_turn(tokenizer)]) == ["<|eot_id|>"]
    completion = chat.completion_ids(tokenizer, ASK, "red")
    assert tokens(tokenizer, completion)[-1] == "<|eot_id|>"
    assert tokenizer.eos_token_id not in completion
    assert tokenizer.eos_token_id not in chat.conversation_ids(tokenizer, answered(ASK, "red"))[0]


def test_generation_stops_at_the_end_of_turn_at_eos_and_at_the_models_own_list():
    from transformers import GenerationConfig

    tokenizer = llama()
    end, eos = chat.end_of_turn(tokenizer), tokenizer.eos_token_id
    assert chat.stop_ids(tokenizer) == [end, eos]
    assert chat.stop_ids(tokenizer, GenerationConfig(eos_token_id=7)) == [end, eos, 7]
    assert chat.stop_ids(tokenizer, GenerationConfig(eos_token_id=[eos, 7])) == [end, eos, 7]
    assert chat.stop_ids(chatml()) == [chat.end_of_turn(chatml())]


@both()
@pytest.mark.parametrize("messages", [ASK, TURNS[:2], TURNS[:4]], ids=["one turn", "system", "several turns"])
def test_prompt_and_completion_are_the_ids_of_the_whole_conversation(make, end, messages):
    tokenizer = make()
    whole = chat.encode(tokenizer, chat.render(tokenizer, answered(messages, "green apple ."), answer_next=False))
    found = chat.prompt_ids(tokenizer, messages) + chat.completion_ids(tokenizer, messages, "green apple .")
    assert found == whole[: len(found)]
    assert tokens(tokenizer, found)[-1] == end
    assert tokens(tokenizer, whole[len(found) :]) == ([] if make is llama else ["\n"])


def test_a_chatml_completion_ends_at_its_end_of_turn_without_the_line_break_after_it():
    tokenizer = chatml()
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    assert tokens(tokenizer, [chat.end_of_turn(tokenizer)]) == ["<|im_end|>"]
    assert tokens(tokenizer, chat.completion_ids(tokenizer, ASK, "red apple")) == ["red", "apple", "<|im_end|>"]
    assert tokens(tokenizer, chat.prompt_ids(tokenizer, ASK))[-3:] == ["<|im_start|>", "assistant", "\n"]


# Conversations


@both()
def test_the_mask_of_one_answer_covers_it_and_its_end_of_turn(make, end):
    tokenizer = make()
    ids, mask = chat.conversation_ids(tokenizer, answered(ASK, "red apple ."))
    assert ids == chat.prompt_ids(tokenizer, ASK) + chat.completion_ids(tokenizer, ASK, "red apple .")
    assert mask == [0] * (len(ids) - 4) + [1] * 4
    assert tokens(tokenizer, ids)[-4:] == ["red", "apple", ".", end]


@both()
def test_the_mask_covers_every_answer_with_its_end_of_turn_and_nothing_else(make, end):
    tokenizer = make()
    ids, mask = chat.conversation_ids(tokenizer, TURNS)
    whole = chat.encode(tokenizer, chat.render(tokenizer, TURNS, answer_next=False))
    assert ids == whole[: len(ids)]
    assert len(mask) == len(ids)
    own = [token for token, used in zip(tokens(tokenizer, ids), mask) if used]
    assert own == ["red", "apple", ".", end, "green", end]


@both()
def test_the_mask_covers_every_answer_of_one_word(make, end):
    tokenizer = make()
    turns = [{**turn, "content": turn["content"].split()[0]} for turn in TURNS]
    ids, mask = chat.conversation_ids(tokenizer, turns)
    whole = chat.encode(tokenizer, chat.render(tokenizer, turns, answer_next=False))
    assert ids == whole[: len(ids)]
    own = [token for token, used in zip(tokens(tokenizer, ids), mask) if used]
    assert own == ["red", end, "green", end]


# Responses


def test_a_responses_text_is_its_words_without_the_stop_token():
    tokenizer = llama()
    stops = chat.stop_ids(tokenizer)
    for stop in stops:
        ids = [*chat.encode(tokenizer, "red apple"), stop]
        assert chat.response_text(tokenizer, ids, stops) == "red apple"
    assert chat.response_text(tokenizer, stops[:1], stops) == ""
    assert chat.response_text(tokenizer, [], stops) == ""


def test_a_truncated_responses_text_keeps_its_last_word():
    tokenizer = llama()
    ids = chat.encode(tokenizer, "red apple")
    assert chat.response_text(tokenizer, ids, chat.stop_ids(tokenizer)).endswith("apple")


def test_text_and_ids_of_a_response_are_the_same_answer():
    tokenizer = llama()
    ids = chat.completion_ids(tokenizer, ASK, "red apple . sing")
    text = chat.response_text(tokenizer, ids, chat.stop_ids(tokenizer))
    assert chat.completion_ids(tokenizer, ASK, text) == ids


def test_sampled_pairs_keep_their_ids_and_a_truncated_one_gets_no_end_token():
    tokenizer = llama()
    prompt, cut = chat.prompt_ids(tokenizer, ASK), chat.encode(tokenizer, "red apple")
    whole = chat.completion_ids(tokenizer, ASK, "green")
    row = {
        "messages": ASK,
        "chosen": "red apple",
        "rejected": "green",
        "prompt_ids": prompt,
        "chosen_ids": cut,
        "rejected_ids": whole,
    }
    assert chat.pair_ids(tokenizer, row) == (prompt, cut, whole)
    assert tokens(tokenizer, chat.pair_ids(tokenizer, row)[1]) == ["red", "apple"]


def test_curated_pairs_are_tokenised_by_the_template_with_their_end_of_turn():
    tokenizer = llama()
    row = {"messages": ASK, "chosen": "red apple", "rejected": "green", "prompt_ids": None}
    prompt, chosen, rejected = chat.pair_ids(tokenizer, row)
    assert prompt == chat.prompt_ids(tokenizer, ASK)
    assert tokens(tokenizer, chosen) == ["red", "apple", "<|eot_id|>"]
    assert tokens(tokenizer, rejected) == ["green", "<|eot_id|>"]


# Templates that cannot be used


def with_template(template):
    tokenizer = llama()
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(
    "template",
    [
        pytest.param(
            CHATML.replace("<|im_start|>assistant\n{% endif", "<|im_start|>assistant\nred {% endif"),
            id="the generation prompt opens a thought",
        ),
        pytest.param(
            "{% for message in messages %}{{ message['content'] }}<|eot_id|>{% endfor %}"
            "{% if add_generation_prompt %}assistant{% endif %}",
            id="the answer has no header",
        ),
        pytest.param(CHATML.replace("<|im_end|>\n", ""), id="nothing closes a turn"),
    ],
)
def test_a_template_that_breaks_the_prefix_or_closes_no_turn_is_refused_with_a_hint(template):
    for question in (chat.end_of_turn, lambda t: chat.completion_ids(t, ASK, "green")):
        with pytest.raises(InputError, match=r"chat template: (?s:.*)\nHint: "):
            question(with_template(template))


def test_a_template_that_renders_earlier_turns_differently_later_is_refused_with_a_hint():
    template = (
        "{% for message in messages %}{{ message['role'] }}\n\n"
        "{% if message['role'] == 'assistant' and not loop.last %}green{% else %}{{ message['content'] }}{% endif %}"
        "<|eot_id|>{% endfor %}{% if add_generation_prompt %}assistant\n\n{% endif %}"
    )
    turns = [{**turn, "content": turn["content"].split()[0]} for turn in TURNS]
    with pytest.raises(InputError, match=r"chat template: (?s:.*)\nHint: "):
        chat.conversation_ids(with_template(template), turns)


# What is judged is what is trained on.


def test_words_stand_for_exactly_their_tokens(tokenizer):
    stops = chat.stop_ids(tokenizer)
    ids = chat.completion_ids(tokenizer, [{"role": "user", "content": "count"}], "one two")
    assert chat.trainable(tokenizer, ids, stops)
    assert chat.trainable(tokenizer, ids[:-1], stops)  # cut off
    assert chat.trainable(tokenizer, [], stops)
    assert not chat.trainable(tokenizer, [tokenizer.bos_token_id, *ids], stops)
    assert not chat.trainable(tokenizer, [ids[0], stops[0], *ids], stops)
    # A row of the embedding that is none of the tokenizer's.
    assert not chat.trainable(tokenizer, [len(tokenizer), *ids], stops)


def test_ids_that_are_no_whole_characters_are_not_trainable_and_other_splits_are_counted():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate(alphabet)}
    vocabulary |= {"ab": len(vocabulary)}
    whole = Tokenizer(models.BPE(vocabulary, [("a", "b")]))
    whole.pre_tokenizer, whole.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=whole)
    first, second = chat.encode(tokenizer, "é")
    assert chat.trainable(tokenizer, [first, second], [])
    assert not chat.trainable(tokenizer, [first], [])
    apart = [vocabulary["a"], vocabulary["b"]]
    # Sampled as two tokens, the tokenizer writes one: trained on as sampled, and counted.
    assert chat.trainable(tokenizer, apart, [])
    assert chat.split_otherwise(tokenizer, apart, [])
    assert not chat.split_otherwise(tokenizer, [vocabulary["ab"]], [])


def test_special_tokens_without_a_role_are_special_too(tokenizer):
    from copy import deepcopy

    from tokenizers import AddedToken

    headed = deepcopy(tokenizer)
    headed.add_tokens([AddedToken("<|header|>", special=True)])
    header = headed.convert_tokens_to_ids("<|header|>")
    assert header not in headed.all_special_ids
    ids = chat.completion_ids(headed, [{"role": "user", "content": "count"}], "one two")
    stops = chat.stop_ids(headed)
    assert chat.trainable(headed, ids, stops)
    assert not chat.trainable(headed, [header, *ids], stops)
    assert chat.without_special(headed, "one<|header|> two") == "one two"


BROKEN = {
    "a tag that does not end": ("{% for message in messages %}", "line 1: TemplateSyntaxError: "),
    "an unknown tag": ("a\n{% wile %}", "line 2: TemplateSyntaxError: "),
    "an attribute of nothing": ("{{ tools.first.name }}", "UndefinedError: "),
    "a refusal": ("{{ raise_exception('no system turns') }}", "TemplateError: no system turns"),
    "a forbidden attribute": ("{{ messages.__class__.mro() }}", "SecurityError: "),
    "a text plus a number": ("{{ messages[0]['role'] + 1 }}", "TypeError: "),
    "a division by 0": ("{{ 1 / 0 }}", "ZeroDivisionError: "),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_template_that_fails_is_an_error_with_a_hint(name):
    broken = llama()
    broken.chat_template, says = BROKEN[name]
    with pytest.raises(InputError, match="chat template") as caught:
        chat.prompt_ids(broken, [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}])
    assert says in str(caught.value)
    assert "; for turns system, user\nHint: mend the template, or name another by `chat_template`" in str(caught.value)


def test_a_tokenizer_without_a_template_is_an_error_with_a_hint():
    bare = llama()
    bare.chat_template = None
    with pytest.raises(InputError, match=r"chat template: ValueError: [^\n]*\nHint: "):
        chat.prompt_ids(bare, [{"role": "user", "content": "b"}])
