"""fetch_base and fetch_data against a hub on loopback: what arrives, what is refused, what is not fetched twice."""

import io
import json
import os
import signal
import subprocess
import sys
import time

import polars as pl
import pytest

from scripts.lib.data import licences, sources
from scripts.lib.stage.artifact import verify_model
from scripts.lib.stage.digest import ROOT, file_sha256
from tests.hub import Hub

CARD = b"---\nlicense: apache-2.0\nlanguage: [en]\n---\n# A tiny model\n"
OUTPUT = "results/base/b/model"
SHAPE = {"hidden_size": 16, "intermediate_size": 32, "layers": 1, "heads": 2, "kv_heads": 2, "head_size": None}
ROWS = [{"messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": "a"}]} for i in range(9)]


@pytest.fixture(scope="module")
def files(policy):
    """A model's repository in Hugging Face format, with what does not belong into a model folder."""
    model = {path.name: path.read_bytes() for path in policy.iterdir()}
    extra = {"LICENSE": b"text of the licence", "README.md": CARD, "modeling_tiny.py": b"raise SystemExit(1)"}
    return {**model, **extra, "pytorch_model.bin": b"\x80\x04N.", "original/consolidated.00.pth": b"\x80"}


@pytest.fixture
def hub():
    server = Hub()
    yield server
    server.shutdown()


def parquet(rows):
    buffer = io.BytesIO()
    pl.DataFrame(rows).write_parquet(buffer)
    return buffer.getvalue()


def start(hub, tmp_path, stage, settings, shape=None, **environment):
    """A stage in a process of its own."""
    given = {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home"), "NO_PROXY": "127.0.0.1"}
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TRANSFORMERS_"))}
    words = ["--settings", json.dumps(settings), "--output", str(tmp_path / OUTPUT)]
    words += ["--runtime", json.dumps({"shape": shape})]
    return subprocess.Popen(
        [sys.executable, "-m", f"scripts.{stage}", *words, "--results", str(tmp_path / "results")],
        cwd=ROOT,
        env={**kept, **given, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def call(hub, tmp_path, stage, settings, shape=None, **environment):
    """(exit code, output folder, manifest, all that the stage has said) of a stage in a process of its own."""
    process = start(hub, tmp_path, stage, settings, shape, **environment)
    said, _ = process.communicate()
    output = tmp_path / OUTPUT
    manifest = output.with_name("model.json")
    assert manifest.exists() == (process.returncode == 0), said
    return process.returncode, output, json.loads(manifest.read_text()) if manifest.exists() else {}, said


def asked_for(revision="main", **given):
    settings = {"repo": "tiny/llama", "revision": revision, "license": "unknown"}
    return settings | {"chat_template": None, "chat_template_sha256": None} | given


def base(hub, tmp_path, revision="main", environment=(), shape=None, **given):
    return call(hub, tmp_path, "fetch_base", asked_for(revision, **given), shape, **dict(environment))


def test_a_model_is_fetched_at_its_commit_with_card_and_licence_and_without_pickles_and_code(
    hub, tmp_path, files, policy
):
    commit = hub.put("model", "tiny/llama", files)
    hub.put("model", "tiny/llama", {**files, "config.json": b"{}"})  # what main is now
    vocabulary = json.loads(files["config.json"])["vocab_size"]
    code, output, manifest, _ = base(hub, tmp_path, commit, shape={**SHAPE, "vocabulary": vocabulary, "tied": True})
    assert code == 0
    wanted = {path.name for path in policy.iterdir()} | {"README.md", "LICENSE"}
    assert {path.name for path in output.rglob("*")} == wanted
    assert all((output / name).read_bytes() == files[name] for name in wanted)
    assert manifest["metrics"] == {
        "repo": "tiny/llama",
        "commit": commit,
        "license": "apache-2.0",
        "card_sha256": file_sha256(output / "README.md"),
    }
    assert manifest["output"] == verify_model(output)
    assert manifest["counts"] == {"files": len(wanted), "bytes": sum(len(files[name]) for name in wanted)}
    assert not (tmp_path / "results" / "work").exists() or not any((tmp_path / "results" / "work").rglob("*"))


def test_of_a_branch_the_manifest_says_which_commit_it_was(hub, tmp_path, files):
    commit = hub.put("model", "tiny/llama", files)
    assert base(hub, tmp_path)[2]["metrics"]["commit"] == commit


def test_a_template_of_ours_takes_the_place_of_the_models_own(hub, tmp_path, files):
    from transformers import AutoTokenizer

    theirs = json.dumps({**json.loads(files["tokenizer_config.json"]), "chat_template": "theirs"}).encode()
    commit = hub.put("model", "tiny/llama", {**files, "tokenizer_config.json": theirs})
    path = sources.TEMPLATES / "llama3.jinja"
    given = {"chat_template": path.name, "chat_template_sha256": file_sha256(path)}
    code, output, _, _ = base(hub, tmp_path, commit, **given)
    assert code == 0
    assert AutoTokenizer.from_pretrained(output, local_files_only=True).chat_template == path.read_text()
    code, _, _, said = base(hub, tmp_path, commit, **given | {"chat_template_sha256": "0" * 64})
    assert code == 2 and "llama3.jinja: changed after the build was planned" in said


def test_a_step_that_was_killed_fetches_only_what_is_missing(hub, tmp_path, files):
    commit = hub.put("model", "tiny/llama", files)
    hub.stalled.add("model.safetensors")
    process = start(hub, tmp_path, "fetch_base", asked_for(commit))
    while "model.safetensors" not in hub.fetched():
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.communicate()
    assert "tokenizer.json" in hub.fetched()
    assert not (tmp_path / OUTPUT).exists()
    hub.stalled.clear()
    hub.asked.clear()
    code, _, _, said = base(hub, tmp_path, commit)
    assert code == 0 and "continuing with what an interrupted step left" in said
    assert hub.fetched() == ["model.safetensors"]


def test_a_connection_that_breaks_goes_on_in_the_middle_of_the_file(hub, tmp_path, files):
    weights = bytes(range(256)) * 100_000  # the library writes ten MiB at a time
    commit = hub.put("model", "tiny/llama", {**files, "model.safetensors": weights})
    hub.cut.add("model.safetensors")
    code, output, _, _ = base(hub, tmp_path, commit)
    assert code == 0
    assert (output / "model.safetensors").read_bytes() == weights
    ranges = [given for method, path, given in hub.asked if method == "GET" and path.endswith("model.safetensors")]
    assert ranges == ["", f"bytes={10 * 2**20}-"]


def without(*names):
    return lambda files: {name: data for name, data in files.items() if name not in names}


def changed(name, **keys):
    return lambda files: {**files, name: json.dumps({**json.loads(files[name]), **keys}).encode()}


INDEX = json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}})


def half_a_model(files):
    rest = without("model.safetensors")(files)
    return {**rest, "model-00001-of-00002.safetensors": b"x", "model.safetensors.index.json": INDEX.encode()}


@pytest.mark.parametrize(
    ("spoil", "given", "message"),
    [
        (without("model.safetensors"), {}, "weights are pickled (original/consolidated.00.pth, pytorch_model.bin)"),
        (changed("config.json", auto_map={"AutoModel": "modeling_tiny.Tiny"}), {}, "config.json: has auto_map"),
        (changed("tokenizer_config.json", auto_map={"AutoTokenizer": ["t.T", None]}), {}, "_config.json: has auto_map"),
        (without("chat_template.jinja"), {}, "the model has no chat template\nHint: name one by `chat_template`"),
        (lambda files: files, {"license": "MIT"}, "license = 'MIT': the card says 'apache-2.0'\nHint: "),
        (half_a_model, {}, "model-00002-of-00002.safetensors missing"),
        (
            lambda files: files,
            {"shape": {**SHAPE, "layers": 2, "vocabulary": 9, "tied": True, "positions": None}},
            "shape.layers = 2: the model's num_hidden_layers is 1\nshape.vocabulary = 9: the model's vocab_size is ",
        ),
        (
            lambda files: files,
            {"shape": {**SHAPE, "vocabulary": 9, "tied": True, "positions": 7}},
            "shape.positions = 7: the model's max_position_embeddings is 512\nHint: ",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_before_its_weights_are_fetched(hub, tmp_path, files, spoil, given, message):
    hub.put("model", "tiny/llama", spoil(files))
    code, output, _, said = base(hub, tmp_path, **given)
    assert code == 2
    assert message in said and "Hint: " in said
    assert not output.exists()
    assert [name for name in hub.fetched() if name.endswith(("safetensors", ".bin", ".pth"))] == []


def test_bytes_that_the_hub_does_not_list_are_refused_and_fetched_again(hub, tmp_path, files):
    commit = hub.put("model", "tiny/llama", files)
    for name in ("generation_config.json", "model.safetensors"):
        hub.damaged = {name}
        code, _, _, said = base(hub, tmp_path, commit)
        assert code == 2 and f"{name} is not what the hub lists at {commit}\nHint: " in said
    hub.damaged = set()
    assert base(hub, tmp_path, commit)[0] == 0


def test_the_token_comes_from_the_environment_alone_and_is_written_nowhere(hub, tmp_path, files):
    hub.put("model", "tiny/llama", files)
    hub.gated.add("tiny/llama")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "token").write_text("hf_secret")  # where `hf auth login` puts it
    code, _, _, said = base(hub, tmp_path)
    assert code == 2
    assert "access is granted by its owners only\nHint: accept its licence" in said and "HF_TOKEN" in said
    assert hub.tokens == {None}
    code, _, _, said = base(hub, tmp_path, environment={"HF_TOKEN": "hf_secret", "HF_DEBUG": "1"})
    assert code == 0
    assert "Bearer hf_secret" in hub.tokens
    written = [path for path in (tmp_path / "results").rglob("*") if path.is_file()]
    assert "hf_secret" not in said
    assert [path for path in written if b"hf_secret" in path.read_bytes()] == []


@pytest.mark.parametrize(
    ("repo", "revision", "message"),
    [
        ("tiny/llama", "f" * 40, "no such revision\nHint: "),
        ("tiny/nobody", "main", "the hub has no such repository\nHint: check `repo`"),
    ],
)
def test_what_the_hub_does_not_have_is_said(hub, tmp_path, files, repo, revision, message):
    hub.put("model", "tiny/llama", files)
    code, _, _, said = base(hub, tmp_path, revision, repo=repo)
    assert code == 2 and message in said


def test_a_hub_that_does_not_answer_is_said(hub, tmp_path):
    hub.shutdown()
    hub.server_close()
    code, _, _, said = base(hub, tmp_path)
    assert code == 2 and "tiny/llama at main: ConnectError" in said and "HF_ENDPOINT" in said


# Data


ALL = {"repo": "tiny/talks", "revision": "main", "pattern": "*", "license": "unknown"}


def data(hub, tmp_path, **given):
    return call(hub, tmp_path, "fetch_data", ALL | given)


def inside(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


TALKS = {
    "README.md": CARD,
    "data/train-0.parquet": parquet(ROWS),
    "data/test-0.jsonl": b"{}\n",
    "dataset_infos.json": b"{}",
    "script.py": b"raise SystemExit(1)",
}


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [
        ("*", {"data/train-0.parquet", "data/test-0.jsonl"}),
        ("data/train-*", {"data/train-0.parquet"}),
        ("*.jsonl", {"data/test-0.jsonl"}),
    ],
)
def test_data_files_that_match_are_fetched_with_their_card(hub, tmp_path, pattern, wanted):
    commit = hub.put("dataset", "tiny/talks", TALKS)
    code, output, manifest, _ = data(hub, tmp_path, revision=commit, pattern=pattern)
    assert code == 0
    assert inside(output) == wanted | {"README.md"}
    assert {str(path.relative_to(output)) for path in sources.fetched([output])} == wanted
    assert manifest["metrics"]["license"] == "apache-2.0"
    assert (manifest["metrics"]["commit"], manifest["counts"]["files"]) == (commit, len(wanted))
    assert manifest["output"] == verify_model(output)


def test_a_name_with_the_characters_of_a_pattern_stands_for_itself(hub, tmp_path):
    odd = ["data/a[1].jsonl", "data/b*.jsonl", "data/c?.jsonl", "data/[d] e.jsonl"]
    alike = ["data/a1.jsonl", "data/b2.jsonl", "data/c3.jsonl", "data/d e.jsonl"]
    files = {name: json.dumps({"prompt": name}).encode() for name in odd + alike}
    hub.put("dataset", "tiny/talks", {"README.md": CARD, **files})
    code, output, manifest, said = data(hub, tmp_path, pattern="*[]*?[]*.jsonl")
    assert code == 0, said
    assert inside(output) == {"README.md", *odd}
    assert all((output / name).read_bytes() == files[name] for name in odd)
    assert sorted(hub.fetched()) == sorted(["README.md", *(name.removeprefix("data/") for name in odd)])
    assert manifest["counts"]["files"] == len(odd)


def test_ctrl_c_ends_a_fetch_at_once_and_keeps_what_has_arrived(hub, tmp_path):
    hub.put("dataset", "tiny/talks", {**TALKS, "data/train-1.parquet": parquet(ROWS[:1])})
    hub.stalled.add("data/train-1.parquet")
    heeded = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by a suite that runs in the background
    process = start(hub, tmp_path, "fetch_data", ALL)
    signal.signal(signal.SIGINT, heeded)
    while "train-1.parquet" not in hub.fetched():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    try:
        said, _ = process.communicate(timeout=30)  # the hub sends nothing more for as long as it is asked
    finally:
        process.kill()
    assert "data/train-0.parquet: 0.0 MB" in said and "train-1.parquet: " not in said
    hub.stalled.clear()
    hub.asked.clear()
    assert data(hub, tmp_path)[0] == 0
    assert hub.fetched() == ["train-1.parquet"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"pattern": "none-*"}, "matches none of the 2 JSONL and parquet files ['data/test-0.jsonl'"),
        ({"license": "MIT"}, "the card says 'apache-2.0'"),
    ],
)
def test_data_that_are_not_what_was_asked_for_are_refused(hub, tmp_path, given, message):
    hub.put("dataset", "tiny/talks", TALKS)
    code, _, _, said = data(hub, tmp_path, **given)
    assert code == 2 and message in said and "Hint: " in said


@pytest.mark.parametrize("name", ["../../evil.jsonl", "data/../../../evil.jsonl", "/evil.jsonl", "..\\evil.jsonl"])
def test_a_path_that_leads_out_of_the_folder_is_refused(hub, tmp_path, name):
    hub.put("dataset", "tiny/talks", {**TALKS, name: b"{}\n"})
    code, _, _, said = data(hub, tmp_path)
    assert code == 2 and "no such path is fetched" in said
    assert hub.fetched() == []


# Cards


@pytest.mark.parametrize(
    ("card", "said", "licence"),
    [
        (b"---\nlicense: mit\n---\n", "MIT", "MIT"),
        (b"---\nlicense: other\nlicense_name: llama3\n---\n", "llama3", "llama3"),
        (b"---\nlicense: other\nlicense_name: llama3\n---\n", "other", "other"),
        (b"---\nlicense: other\nlicense_name: llama3\n---\n", "unknown", "llama3"),
        (b"---\nlicense: [mit, apache-2.0]\n---\n", "unknown", "mit, apache-2.0"),
        (b"---\ntags: [a]\n---\n", "MIT", "MIT"),
        (b"---\n: [broken\n---\n", "unknown", "unknown"),
        (b"# license: mit\n", "unknown", "unknown"),
        (None, "MIT", "MIT"),
    ],
)
def test_a_licence_is_the_cards_or_agrees_with_it(tmp_path, card, said, licence):
    if card is not None:
        (tmp_path / "README.md").write_bytes(card)
    facts = licences.described(tmp_path, said)
    assert facts.pop("license") == licence
    assert set(facts) == ({"card_sha256"} if card is not None else set())
