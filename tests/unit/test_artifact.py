"""Artifacts: whole or not at all, described, verified."""

import json
import math

import pytest

from scripts.lib.stage import artifact
from scripts.lib.stage.digest import file_sha256, text_sha256
from scripts.lib.stage.errors import InputError

CONFIG, WEIGHTS = '{"a": 1}', b"\x00\x01\x02\x03"


def save(folder):
    (folder / "config.json").write_text(CONFIG)
    (folder / "sub").mkdir()
    (folder / "sub" / "model.safetensors").write_bytes(WEIGHTS)


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "sft" / "policy"
    artifact.write_model(folder, save)
    return folder


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# Writing beside


def test_a_file_appears_under_its_name_only_when_the_block_ends(tmp_path):
    path = tmp_path / "new" / "x.json"
    with artifact.atomic_write(path) as temporary:
        temporary.write_text("x")
        assert not path.exists()
        assert temporary.parent == path.parent
    assert path.read_text() == "x"
    assert names(path.parent) == ["x.json"]


def test_an_error_leaves_nothing_behind(tmp_path):
    with pytest.raises(RuntimeError), artifact.atomic_write(tmp_path / "x") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert names(tmp_path) == []


def test_an_error_leaves_no_folder_behind(tmp_path):
    with pytest.raises(RuntimeError), artifact.atomic_write(tmp_path / "x") as temporary:
        (temporary / "sub").mkdir(parents=True)
        (temporary / "sub" / "y").write_text("half")
        raise RuntimeError
    assert names(tmp_path) == []


def test_an_error_leaves_the_old_file_and_the_old_folder(tmp_path):
    (tmp_path / "x").write_text("old")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "y").write_text("old")
    for name in ("x", "d"):
        with pytest.raises(RuntimeError), artifact.atomic_write(tmp_path / name) as temporary:
            temporary.write_text("new")
            raise RuntimeError
    assert (tmp_path / "x").read_text() == "old"
    assert (tmp_path / "d" / "y").read_text() == "old"
    assert names(tmp_path) == ["d", "x"]


def test_a_new_file_and_a_new_folder_replace_the_old_ones(tmp_path):
    artifact.write_text(tmp_path / "x", "old")
    artifact.write_text(tmp_path / "x", "new")
    assert (tmp_path / "x").read_text() == "new"
    for name in ("old", "new"):
        with artifact.atomic_write(tmp_path / "d") as temporary:
            temporary.mkdir()
            (temporary / name).write_text(name)
    assert names(tmp_path / "d") == ["new"]
    assert names(tmp_path) == ["d", "x"]


def test_a_block_that_writes_nothing_is_an_error_and_leaves_the_old_file(tmp_path):
    artifact.write_text(tmp_path / "x", "old")
    with pytest.raises(FileNotFoundError), artifact.atomic_write(tmp_path / "x"):
        pass
    assert (tmp_path / "x").read_text() == "old"


# Names


def test_manifest_digests_and_stem_stand_beside_the_artifact(tmp_path):
    assert artifact.manifest_path(tmp_path / "a" / "0.parquet") == tmp_path / "a" / "0.json"
    assert artifact.manifest_path(tmp_path / "report.html") == tmp_path / "report.json"
    assert artifact.manifest_path(tmp_path / "policy") == tmp_path / "policy.json"
    assert artifact.digests_path(tmp_path / "policy") == tmp_path / "policy.sha256"
    assert artifact.stem(tmp_path / "0.parquet") == tmp_path / "0"


# JSON


def test_canonical_json_is_one_string_for_one_value():
    assert artifact.canonical_json({"b": [1, 2.0], "a": {"d": None, "c": "ä"}}) == (
        '{"a": {"c": "ä", "d": null}, "b": [1, 2.0]}'
    )
    assert artifact.canonical_json({"a": 1, "b": 2}) == artifact.canonical_json({"b": 2, "a": 1})
    assert artifact.canonical_json([2, 1]) == "[2, 1]"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_json_refuses_numbers_that_are_none(tmp_path, value):
    with pytest.raises(ValueError, match="Out of range"):
        artifact.canonical_json({"a": value})
    with pytest.raises(ValueError, match="Out of range"):
        artifact.write_json(tmp_path / "x.json", {"a": value})
    assert names(tmp_path) == []


def test_written_json_is_sorted_indented_and_ends_in_a_newline(tmp_path):
    artifact.write_json(tmp_path / "x.json", {"b": "ä", "a": 1})
    assert (tmp_path / "x.json").read_text() == '{\n  "a": 1,\n  "b": "ä"\n}\n'
    assert artifact.read_json(tmp_path / "x.json") == {"a": 1, "b": "ä"}


@pytest.mark.parametrize("text", [None, "", "{", "[1]", "1"])
def test_json_that_is_missing_broken_or_no_object_is_an_input_error_naming_the_file(tmp_path, text):
    if text is not None:
        (tmp_path / "x.json").write_text(text)
    with pytest.raises(InputError, match=r"x\.json"):
        artifact.read_json(tmp_path / "x.json")


# Models


def test_a_model_has_the_digests_of_its_files_in_the_form_of_sha256sum(model):
    lines = [
        f"{text_sha256(CONFIG)}  config.json",
        f"{file_sha256(model / 'sub' / 'model.safetensors')}  sub/model.safetensors",
    ]
    assert artifact.digests_path(model).read_text() == "\n".join(lines) + "\n"
    assert names(model.parent) == ["policy", "policy.sha256"]


def test_an_untouched_model_verifies_as_its_digests_files_digest(model):
    assert artifact.verify_model(model) == file_sha256(artifact.digests_path(model))
    assert artifact.input_digest(model) == artifact.verify_model(model)


def test_writing_the_same_model_twice_gives_the_same_digests(model):
    before = artifact.digests_path(model).read_bytes()
    artifact.write_model(model, save)
    assert artifact.digests_path(model).read_bytes() == before


def truncate(folder):
    (folder / "sub" / "model.safetensors").write_bytes(WEIGHTS[:-1])


def replace(folder):
    (folder / "sub" / "model.safetensors").write_bytes(WEIGHTS[::-1])


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        pytest.param(lambda f: (f / "sub" / "model.safetensors").unlink(), "sub/model.safetensors: missing", id="gone"),
        pytest.param(truncate, "sub/model.safetensors: sha256 is ", id="truncated"),
        pytest.param(replace, "sub/model.safetensors: sha256 is ", id="replaced"),
        pytest.param(lambda f: (f / "extra.json").write_text("{}"), "extra.json: not listed in ", id="added"),
        pytest.param(lambda f: artifact.digests_path(f).unlink(), "no digests file ", id="no digests"),
        pytest.param(lambda f: artifact.digests_path(f).write_text(""), "config.json: not listed", id="empty digests"),
        pytest.param(lambda f: artifact.digests_path(f).write_text("ab\n"), "policy", id="broken digests"),
    ],
)
def test_a_damaged_model_is_refused_naming_the_file_with_a_hint(model, damage, says):
    damage(model)
    with pytest.raises(InputError) as caught:
        artifact.verify_model(model)
    assert str(model) in str(caught.value)
    assert says in str(caught.value)
    assert "\nHint: " in str(caught.value)


def test_the_time_stamp_of_snakemake_is_no_part_of_a_model(model):
    digest = artifact.verify_model(model)
    (model / ".snakemake_timestamp").write_text("")
    assert artifact.verify_model(model) == digest
    artifact.write_model(model, lambda folder: (save(folder), (folder / ".snakemake_timestamp").write_text("")))
    assert artifact.verify_model(model) == digest


@pytest.mark.parametrize("name", ["pytorch_model.bin", "training_args.pt", "optimizer.pth", "data.pkl"])
def test_pickles_are_refused_and_nothing_is_kept(tmp_path, name):
    def save_pickle(folder):
        save(folder)
        (folder / "sub" / name).write_bytes(b"\x80")

    with pytest.raises(InputError, match=rf"refusing to keep pickle files \['{name}'\]\nHint: "):
        artifact.write_model(tmp_path / "policy", save_pickle)
    assert names(tmp_path) == []


def test_a_save_that_fails_keeps_the_old_folder_but_no_digests_so_that_nobody_reads_it(model):
    def fail(folder):
        raise RuntimeError

    with pytest.raises(RuntimeError):
        artifact.write_model(model, fail)
    assert names(model.parent) == ["policy"]
    with pytest.raises(InputError, match="no digests file"):
        artifact.verify_model(model)


# Inputs and volatile facts


def test_a_tables_input_digest_is_that_of_its_bytes_and_a_missing_one_is_refused(tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"abc")
    assert artifact.input_digest(tmp_path / "x.parquet") == text_sha256("abc")
    with pytest.raises(InputError, match=r"y\.parquet: no such file\nHint: "):
        artifact.input_digest(tmp_path / "y.parquet")


def test_volatile_facts_are_versions_host_time_and_commit():
    facts = artifact.volatile()
    assert set(facts) == {"finished", "host", "python", "packages", "git_commit", "git_dirty"}
    assert facts["packages"]["snakemake"].startswith("9.")
    assert json.loads(json.dumps(facts)) == facts
