"""Files to examples: order, duplicates, parts and counts do not depend on files or lines."""

import json
from collections import Counter
from pathlib import Path

import pytest

from scripts.lib.data import curation
from scripts.lib.data.sources import digest
from scripts.lib.kinds.data import CurateFiles, PromptsOfFiles
from scripts.lib.stage.digest import ROOT
from scripts.lib.stage.errors import InputError

DATA = ROOT.parent / "shared" / "data"
needs_data = pytest.mark.skipif(not (DATA / "KNOWN.json").is_file(), reason=f"no real data in {DATA}")


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def settings(paths, kind="prompts", part=(0.0, 1.0), max_characters=None, drop_system=False):
    """Settings that take rows of these files, as they are now."""
    files = [line for path in paths for line in digest(str(path), "*", "source")]
    given = {"kind": "files", "pattern": "*", "adapter": "auto", "license": "MIT", "files": files, "size": None}
    given |= {"part": list(part), "max_characters": max_characters}
    if kind == "prompts":
        return PromptsOfFiles(**given | {"size": 1, "number": 1})
    return CurateFiles(**given, type=kind, drop_system=drop_system)


def read(paths, kind, part=(0.0, 1.0), max_characters=None, drop_system=False):
    return curation.read(paths, kind, settings(paths, kind, part, max_characters, drop_system))


def lines(path, *values):
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path


def test_system_turns_are_dropped_on_request_and_counted(tmp_path):
    system, asked = {"role": "system", "content": "be short"}, [user("q")]
    talk = [*asked, assistant("good")]
    path = lines(tmp_path / "a.jsonl", {"messages": [system, *talk]}, {"messages": talk}, {"messages": [*talk, system]})
    kept, counts = read([path], "conversations")
    assert sorted(len(example.messages) for _, example in kept) == [1, 2]
    assert counts == {"rows_in": 3, "dropped_not_alternating": 1}
    bare, counts = read([path], "conversations", drop_system=True)
    assert [example.messages for _, example in bare] == [asked]
    assert counts == {"rows_in": 3, "system_turns": 1, "dropped_not_alternating": 1, "dropped_duplicate": 1}


def test_lines_that_are_not_json_are_counted(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"prompt": "p"}\n{"prompt": \n\xff\xfe\xfa\n' + b"[" * 100_000 + b'\n"text"\n')
    prompts, counts = read([path], "prompts")
    assert [example.messages for _, example in prompts] == [[user("p")]]
    assert counts == {"rows_in": 5, "dropped_malformed": 4}


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
    firsts = [{example.messages[0]["content"] for _, example in kept} for kept, _ in parts]
    assert sum(map(len, firsts)) == len(set.union(*firsts)) == 100
    assert all(firsts)
    assert sum(len(kept) for kept, _ in parts) == 300
    assert all(counts["rows_in"] == len(kept) + counts["dropped_outside_part"] for kept, counts in parts)


def test_length_is_counted_in_characters_of_all_turns_with_the_longer_answer(tmp_path):
    path = lines(tmp_path / "a.jsonl", {"prompt": "1234", "chosen": "12", "rejected": "123"})
    assert len(read([path], "preferences", max_characters=7)[0]) == 1
    assert read([path], "preferences", max_characters=6) == ([], {"rows_in": 1, "dropped_too_long": 1})


def test_bytes_that_were_not_planned_are_refused(tmp_path):
    path = lines(tmp_path / "a.jsonl", {"prompt": "p"})
    planned = settings([path])
    assert curation.read([path], "prompts", planned)[1] == {"rows_in": 1}
    with pytest.raises(InputError, match="differ from the planned"):
        curation.read([], "prompts", planned)
    lines(path, {"prompt": "other"})
    with pytest.raises(InputError, match=r"differ from the planned ones: .*a\.jsonl.*\nHint: "):
        curation.read([path], "prompts", planned)


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
    first = [{example.messages[0]["content"] for _, example in kept} for kept in (train, heldout)]
    assert not first[0] & first[1]
    assert len(train) + len(heldout) == 2333


@pytest.mark.parametrize(
    ("counts", "hint"),
    [
        ({"rows_in": 0}, "the files hold no rows; let `path` and `pattern` name others."),
        ({"rows_in": 9, "dropped_malformed": 8, "dropped_too_long": 1}, "most rows are lost as malformed (8 of 9): "),
        ({"rows_in": 9, "dropped_special_tokens": 9}, "most rows are lost as special_tokens (9 of 9): they hold"),
        ({"rows_in": 9, "dropped_duplicate": 9}, "the same rows stand there several times; name more files."),
        (
            {"rows_in": 9, "dropped_unranked": 9},
            "most rows are lost as unranked (9 of 9): mend them, or name more files.",
        ),
    ],
)
def test_too_few_rows_are_told_with_what_helps_against_the_largest_loss(counts, hint):
    said = str(curation.shortfall(0, 1, Counter(counts)))
    assert f"source: 0 rows fit, 1 are wanted; counts: {counts}\nHint: " in said
    assert hint in said
    assert "or lower `size`" not in said
    assert "or lower `size`." in str(curation.shortfall(3, 4, Counter({"rows_in": 9, "dropped_too_long": 6})))
