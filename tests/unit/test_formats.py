"""Readers of local files: which rows become which examples, and under which reason the others are counted."""

import gzip
import json
from pathlib import Path

import polars as pl
import pytest

from scripts.lib.data import formats
from scripts.lib.data.formats import Example, parse
from scripts.lib.data.sources import digest
from scripts.lib.stage.digest import ROOT
from scripts.lib.stage.errors import InputError

DATA = ROOT.parent / "shared" / "data"
needs_data = pytest.mark.skipif(not (DATA / "KNOWN.json").is_file(), reason=f"no real data in {DATA}")


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def read(paths, kind, part=(0.0, 1.0), max_characters=None):
    files = [line for path in paths for line in digest(str(path), "*", "source")]
    return formats.read(paths, kind, {"files": files, "part": list(part), "max_characters": max_characters})


def lines(path, *values):
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path


Q, GOOD, BAD = [user("q")], [user("q"), assistant("good")], [user("q"), assistant("bad")]
HH = {"chosen": "\n\nHuman: q\n\nAssistant: good", "rejected": "\n\nHuman: q\n\nAssistant: bad"}


@pytest.mark.parametrize(
    "row",
    [
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
    ],
)
def test_every_shape_of_a_preference_gives_the_same_example(row):
    assert parse(row, "preferences") == Example(Q, ("good", "bad"))
    assert parse(row, "conversations") == Example(Q, ("good",))
    assert parse(row, "prompts") == Example(Q, ())


@pytest.mark.parametrize(
    "row",
    [
        {"messages": GOOD},
        {"conversations": GOOD},
        {"prompt": "q", "response": "good"},
        {"prompt": Q, "completion": "good"},
    ],
)
def test_every_shape_of_a_conversation_gives_the_same_example(row):
    assert parse(row, "conversations") == Example(Q, ("good",))
    assert parse(row, "prompts") == Example(Q, ())
    assert parse(row, "preferences") == "malformed"


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q"},
        {"messages": Q},
        {"prompt": Q},
        {"prompt": "q", "response": None},
        {"context_messages": Q, "context": "<|begin_of_text|>q", "id": "x"},
        {"prompt": "\n\nHuman: q\n\nAssistant: ", "answers": [{"answer": "a", "rank": 1.0}]},
    ],
)
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


def test_system_turns_are_dropped_on_request_and_counted(tmp_path):
    system = {"role": "system", "content": "be short"}
    path = lines(tmp_path / "a.jsonl", {"messages": [system, *GOOD]}, {"messages": GOOD}, {"messages": [*GOOD, system]})
    settings = {"part": [0.0, 1.0], "max_characters": None}
    kept, counts = formats.read([path], "conversations", settings)
    assert sorted(len(example.messages) for _, example in kept) == [1, 2]
    assert counts == {"rows_in": 3, "dropped_not_alternating": 1}
    bare, counts = formats.read([path], "conversations", {**settings, "drop_system": True})
    assert [example.messages for _, example in bare] == [Q]
    assert counts == {"rows_in": 3, "system_turns": 1, "dropped_not_alternating": 1, "dropped_duplicate": 1}


def test_several_turns_and_a_system_turn_are_kept_in_order():
    turns = [{"role": "system", "content": "s"}, user("a"), assistant("b"), user("c")]
    assert parse({"messages": [*turns, assistant("d")]}, "conversations") == Example(turns, ("d",))
    transcript = "\n\nHuman: a\n\nAssistant: b\nHuman: is inside the line\n\nHuman: c\n\nAssistant: d\n\ne"
    found = parse({"chosen": transcript, "rejected": transcript + "!"}, "preferences")
    assert found == Example([user("a"), assistant("b\nHuman: is inside the line"), user("c")], ("d\n\ne", "d\n\ne!"))


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


@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.jsonl.gz", "a.json", "array.json", "array.json.gz", "a.parquet", "a.parquet.gz"]
)
def test_every_kind_of_file_gives_the_same_rows(tmp_path, name):
    # U+2028 and U+0085 end a line for str.splitlines, and must not here.
    values = [{"prompt": "one\u2028two\x85three", "response": "r"}, {"prompt": "p", "response": None}]
    path = tmp_path / name
    if "parquet" in name:
        pl.DataFrame(values).write_parquet(path)
        data = path.read_bytes()
    elif name.startswith("array"):
        data = json.dumps(values, indent=1).encode()
    else:
        data = "\n".join(json.dumps(value, ensure_ascii=False) for value in values).encode() + b"\n\n"
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert list(formats.rows(path)) == values


def test_gzip_is_recognised_by_its_bytes(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(gzip.compress(b'{"prompt": "p"}\n'))
    (tmp_path / "b.jsonl.gz").write_bytes(b'{"prompt": "p"}\n')
    assert [list(formats.rows(tmp_path / name)) for name in ("a.jsonl", "b.jsonl.gz")] == [[{"prompt": "p"}]] * 2


def test_lines_that_are_not_json_are_counted(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"prompt": "p"}\n{"prompt": \n\xff\xfe\xfa\n' + b"[" * 100_000 + b'\n"text"\n')
    found, counts = read([path], "prompts")
    assert [example.messages for _, example in found] == [[user("p")]]
    assert counts == {"rows_in": 5, "dropped_malformed": 4}


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("LICENSE.txt", b"MIT"),
        ("a.pkl", b"\x80\x04N."),
        ("a.jsonl.gz", gzip.compress(b'{"prompt": "p"}\n' * 999, mtime=0)[:-20]),
        ("a.parquet", b"no parquet"),
        ("a.json", b"[1, 2"),
    ],
)
def test_a_file_that_cannot_be_read_is_an_input_error_with_a_hint(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=f"{name}.*\n?.*Hint: "):
        list(formats.rows(tmp_path / name))


def test_order_and_duplicates_do_not_depend_on_files_or_lines(tmp_path):
    values = [{"prompt": f"p{i}", "response": f"r{i % 7}"} for i in range(40)]
    one = lines(tmp_path / "one.jsonl", *values, *values[:5])
    other = lines(tmp_path / "other.jsonl", *values[::-1])
    first, counts = read([one], "conversations")
    second, _ = read([other], "conversations")
    both, counts_of_both = read([other, one], "conversations")
    assert [e for _, e in first] == [e for _, e in second] == [e for _, e in both]
    assert [e.prompt_id for _, e in first] == sorted(e.prompt_id for _, e in first)
    assert counts == {"rows_in": 45, "dropped_duplicate": 5}
    assert counts_of_both == {"rows_in": 85, "dropped_duplicate": 45}


def test_parts_that_do_not_overlap_share_no_first_message_and_lose_no_row(tmp_path):
    def turns(i, j):
        return [user(f"first {i}"), assistant("a"), user(f"second {j}"), assistant("b")]

    path = lines(tmp_path / "a.jsonl", *({"messages": turns(i, j)} for i in range(100) for j in range(3)))
    parts = [read([path], "conversations", part) for part in ((0.0, 0.25), (0.25, 0.7), (0.7, 1.0))]
    firsts = [{example.messages[0]["content"] for _, example in found} for found, _ in parts]
    assert sum(map(len, firsts)) == len(set.union(*firsts)) == 100
    assert all(firsts)
    assert sum(len(found) for found, _ in parts) == 300
    assert all(counts["rows_in"] == len(found) + counts["dropped_outside_part"] for found, counts in parts)


def test_length_is_counted_in_characters_of_all_turns_with_the_longer_answer(tmp_path):
    path = lines(tmp_path / "a.jsonl", {"prompt": "1234", "chosen": "12", "rejected": "123"})
    assert len(read([path], "preferences", max_characters=7)[0]) == 1
    assert read([path], "preferences", max_characters=6) == ([], {"rows_in": 1, "dropped_too_long": 1})


def test_bytes_that_were_not_planned_are_refused(tmp_path):
    path = lines(tmp_path / "a.jsonl", {"prompt": "p"})
    settings = {"files": digest(str(path), "*", "source"), "part": [0.0, 1.0], "max_characters": None}
    assert formats.read([path], "prompts", settings)[1] == {"rows_in": 1}
    with pytest.raises(InputError, match="differ from the planned"):
        formats.read([], "prompts", settings)
    lines(path, {"prompt": "other"})
    with pytest.raises(InputError, match=r"differ from the planned ones: .*a\.jsonl.*\nHint: "):
        formats.read([path], "prompts", settings)


@needs_data
@pytest.mark.parametrize(
    ("name", "dropped"),
    [
        # The reasons are exclusive here and overlap in KNOWN.json: 3 and 4 rows that do not alternate also differ.
        ("helpful-base", {"identical": 2, "prompt_differs": 9, "empty": 4, "not_alternating": 6}),
        ("harmless-base", {"prompt_differs": 5, "empty": 4, "not_alternating": 4}),
    ],
)
def test_hh_rlhf_gives_the_known_counts(name, dropped):
    known = json.loads((DATA / "KNOWN.json").read_text())[f"hh_{name}"]
    path = DATA / "hh_rlhf" / f"{name}.test.jsonl.gz"
    pairs, counts = read([path], "preferences")
    assert counts == {"rows_in": known["rows"]} | {f"dropped_{reason}": count for reason, count in dropped.items()}
    assert len(pairs) == known["rows"] - sum(dropped.values())
    for reason, of_known in {
        "identical": known["identical"],
        "prompt_differs": known["prompt_differs"],
        "empty": known["empty_final_chosen"] + known["empty_final_rejected"],
    }.items():
        assert counts[f"dropped_{reason}"] == of_known
    assert read([path], "conversations")[1]["dropped_not_alternating"] == known["non_alternating"]


@needs_data
def test_hh_rlhf_parts_share_no_first_message():
    path = Path(DATA / "hh_rlhf" / "helpful-base.test.jsonl.gz")
    (train, _), (heldout, _) = (read([path], "preferences", part) for part in ((0.0, 0.8), (0.8, 1.0)))
    first = [{example.messages[0]["content"] for _, example in found} for found in (train, heldout)]
    assert not first[0] & first[1]
    assert len(train) + len(heldout) == 2333
