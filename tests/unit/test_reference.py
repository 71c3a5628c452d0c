"""The key reference and the editors' schema: up to date, and true of the configurations that are shipped."""

import json
import re

import pytest
import yaml
from jsonschema import Draft202012Validator

from scripts import write_reference
from scripts.lib.kinds.schema import schema
from tests.unit.test_config import SHIPPED, blocks, given


class EditorsLoader(yaml.SafeLoader):
    """Reads YAML 1.2, as editors do: 1e-6 is a number there."""


NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$")
EditorsLoader.add_implicit_resolver("tag:yaml.org,2002:float", NUMBER, list("-+0123456789."))
EDITORS = Draft202012Validator(json.loads(write_reference.SCHEMA.read_text()))


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (write_reference.README, write_reference.reference),
        (write_reference.SCHEMA, write_reference.editors_schema),
    ],
    ids=["README.md", "schema.json"],
)
def test_what_is_written_is_what_the_models_say(path, text):
    assert path.read_text() == text(), "run `make reference`"


def test_both_files_are_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(write_reference, "ROOT", tmp_path)
    for name in ("README", "SCHEMA"):
        monkeypatch.setattr(write_reference, name, tmp_path / name.lower())
    assert write_reference.main([]) == 0
    assert capsys.readouterr().out == "readme\nschema\n"
    assert (tmp_path / "readme").read_text() == write_reference.reference()
    assert json.loads((tmp_path / "schema").read_text())["title"] == "Ouroboros configuration"


def test_every_key_of_every_block_has_a_row():
    rows = re.findall(r"^\| `([a-z0-9_]+)` \|", write_reference.reference(), re.MULTILINE)
    told = {"Trainer", "Finetuning", "Config"}  # two that others inherit from; the keys of the last that are no blocks
    keys = [key for name, kind in blocks().items() if name not in told for key in kind.model_fields]
    assert sorted(rows) == sorted([*keys, "preset", "extends", "results", "seed", "dtype", "run", "replace"])


def test_links_lead_to_headings():
    text = write_reference.reference()
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    linked = re.findall(r"\]\(#([^)]*)\)", text)
    assert linked
    assert set(linked) <= anchors


@pytest.mark.parametrize(
    "row",
    [
        "| `sft` | text | required | The policy that iteration 1 samples from: an entry of `sft`. |",
        "| `top_p` | number, above 0, at most 1 | `1` | Nucleus sampling: the share of probability to draw from. |",
        "| `head_size` | integer, at least 1, or `null` | `null` | Width of a head; null means hidden_size / heads. |",
        "| `keep` | text, matching `^(all\\|last)$`; or list: integer, at least 1 | `all` | Iterations whose",
        "| `part` | list of 2: number, at least 0, at most 1 | `[0.0, 1.0]` | Share of the rows",
        "| `lora` | [sft.NAME.lora](#sftnamelora), or `null` | `null` | ",
        "| `quantization` | `nf4`, `null` | `null` | ",
    ],
)
def test_a_row_says_type_range_default_and_meaning(row):
    assert any(line.startswith(row) for line in write_reference.reference().splitlines())


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_configuration_is_valid_in_an_editor(path):
    said = yaml.load(path.read_text(), Loader=EditorsLoader)  # noqa: S506
    assert [error.message for error in EDITORS.iter_errors(said)] == []


@pytest.mark.parametrize(
    ("overlay", "where"),
    [
        ({"runs": {"main": {"dpo": {"beta": 0.5}}}, "prompts": {"asks": {"size": 5}}}, []),
        ({"resources": {"train_dpo": {"sharding": "zero2"}}, "bases": {"small": {"kind": "world", "layers": 1}}}, []),
        ({"runs": {"main": {"dpo": {"betta": 0.5}}}}, ["runs", "main", "dpo"]),
        ({"runs": {"main": {"dpo": {"beta": 0}}}}, ["runs", "main", "dpo", "beta"]),
        ({"samplings": {"eight": {"k": "8"}}}, ["samplings", "eight", "k"]),
        ({"bases": {"small": {"kind": "hub", "layers": 1}}}, ["bases", "small"]),
    ],
)
def test_an_overlay_is_checked_by_what_it_says(overlay, where):
    assert [list(error.absolute_path) for error in EDITORS.iter_errors(overlay)] == ([where] if where else [])


def test_the_schemas_are_schemas():
    Draft202012Validator.check_schema(EDITORS.schema)
    Draft202012Validator.check_schema(schema())
    whole = {**given(), "seed": -1}
    assert [list(error.absolute_path) for error in Draft202012Validator(schema()).iter_errors(whole)] == [["seed"]]
