"""Base, data and prompts from a hub on loopback, through Snakemake: built once, and again where a pin has changed."""

import io
import json
from types import SimpleNamespace

import polars as pl
import pytest

from scripts.lib.data import tables
from scripts.lib.data.schemas.conversations import CONVERSATIONS
from scripts.lib.data.schemas.preferences import PREFERENCES
from scripts.lib.data.schemas.prompts import PROMPTS
from tests.conftest import copy_checkout, jobs, run
from tests.hub import Hub
from tests.unit.conftest import WORDS

CARD = b"---\nlicense: apache-2.0\n---\n# From a test\n"
TARGETS = ["sft/it/policy.json", "data/talks.json", "data/choices.json", "prompts/asks-1.json", "prompts/asks-2.json"]
ROOT = "results/from_hub"


def user(text):
    return {"role": "user", "content": text}


def talks(count):
    """ShareGPT's form, with a system turn."""
    spoken = [[("system", "be short"), ("human", f"question {i}"), ("gpt", "yes")] for i in range(count)]
    return [{"conversations": [{"from": role, "value": text} for role, text in turns]} for turns in spoken]


def ranked(count):
    """Nectar's form."""
    answers = [{"answer": f"answer {rank}", "model": "m", "rank": float(rank)} for rank in (2, 1, 3)]
    return [{"prompt": f"\n\nHuman: choice {i}\n\nAssistant: ", "answers": answers} for i in range(count)]


def parquet(rows):
    buffer = io.BytesIO()
    pl.DataFrame(rows).write_parquet(buffer)
    return {"README.md": CARD, "data/train-00000.parquet": buffer.getvalue()}


def model_files(folder):
    from transformers import LlamaConfig, LlamaForCausalLM

    from scripts.make_base import make_tokenizer

    tokenizer = make_tokenizer(WORDS)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return {"README.md": CARD, **{path.name: path.read_bytes() for path in folder.iterdir()}}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A checkout in which everything has been fetched and read, with its hub, its configuration, and what was said."""
    hub = Hub()
    commits = {
        "base": hub.put("model", "tiny/llama", model_files(tmp_path_factory.mktemp("model"))),
        "choices": hub.put("dataset", "tiny/choices", parquet(ranked(30))),
    }
    hub.put("dataset", "tiny/talks", parquet(talks(20)))
    rows = [[{"context_messages": [user(f"ask {n} {i}")]} for i in range(12)] for n in (1, 2)]
    asks = [hub.put("dataset", f"tiny/asks-{n}-few", parquet(rows[n - 1])) for n in (1, 2)]
    given = {
        "preset": "from_hub",
        "bases": {"llama": {"kind": "hub", "repo": "tiny/llama", "revision": commits["base"], "license": "Apache-2.0"}},
        "datasets": {
            "talks": {
                "kind": "hub",
                "type": "conversations",
                "repo": "tiny/talks",
                "revision": "main",
                "drop_system": True,
            },
            "choices": {"kind": "hub", "type": "preferences", "repo": "tiny/choices", "revision": commits["choices"]},
        },
        "prompts": {"asks": {"kind": "hub", "repo": "tiny/asks-{n}-few", "revision": asks, "size": 10}},
        "sft": {
            "it": {"kind": "adopt", "base": "llama"},
            "taught": {"kind": "train", "base": "llama", "dataset": "talks", "max_length": 2048},
        },
        "pairings": {"as_given": {}},
        "runs": {
            name: {
                "sft": sft,
                "iterations": 1,
                "mix": [{"dataset": "choices", "pairing": "as_given"}],
                "dpo": {"max_length": 2048},
            }
            for name, sft in (("main", "it"), ("other", "taught"))
        },
        "runtime": {"device": "cpu"},
    }
    checkout = copy_checkout(tmp_path_factory.mktemp("hub") / "ouroboros")
    (checkout / "hub.yaml").write_text(json.dumps(given))

    def snakemake(*words):
        # Other tests have set these in this process, as stages do.
        online = ["-u", "HF_HUB_OFFLINE", "-u", "TRANSFORMERS_OFFLINE"]
        address = [*online, f"HF_ENDPOINT={hub.address}", "NO_PROXY=127.0.0.1", f"HF_HOME={checkout}/home"]
        return run(checkout, "env", *address, "snakemake", "--configfile", "hub.yaml", *words)

    files = [f"{ROOT}/{target}" for target in TARGETS]
    said = snakemake("--", *files)
    yield SimpleNamespace(hub=hub, checkout=checkout, given=given, snakemake=snakemake, files=files, said=said)
    hub.shutdown()


def table(built, name, schema):
    return tables.read_table(built.checkout / ROOT / f"{name}.parquet", schema).to_dicts()


def manifest(built, name):
    return json.loads((built.checkout / ROOT / f"{name}.json").read_text())


def test_what_came_from_the_hub_is_read_in_its_own_shape(built):
    rows = table(built, "data/talks", CONVERSATIONS)
    assert {len(row["messages"]) for row in rows} == {2}
    assert manifest(built, "data/talks")["counts"] == {"rows_in": 20, "system_turns": 20, "rows_out": 20}
    pairs = table(built, "data/choices", PREFERENCES)
    assert {(row["chosen"], row["rejected"], row["margin"]) for row in pairs} == {("answer 1", "answer 3", 2.0)}
    for n in (1, 2):
        asked = table(built, f"prompts/asks-{n}", PROMPTS)
        assert len(asked) == 10
        assert {row["messages"][0]["content"].split()[1] for row in asked} == {str(n)}


def test_manifests_carry_the_licence_and_the_sources_their_commits(built):
    assert manifest(built, "data/choices")["metrics"]["license"] == "apache-2.0"
    assert manifest(built, "base/llama/model")["metrics"]["license"] == "Apache-2.0"
    assert (
        manifest(built, "source/datasets/talks/files")["metrics"]["commit"] == built.hub.main["dataset", "tiny/talks"]
    )
    lines = run(built.checkout, "python", "-m", "scripts.lineage", f"{ROOT}/sft/it/policy").stdout
    assert "fetch_base: repo tiny/llama" in lines and "license Apache-2.0" in lines
    lines = run(built.checkout, "python", "-m", "scripts.lineage", f"{ROOT}/data/talks.parquet").stdout
    commit = built.hub.main["dataset", "tiny/talks"]
    assert "source/datasets/talks/files  fetch_data: pattern *, repo tiny/talks, revision main; " in lines
    assert f"license apache-2.0; the hub's commit {commit[:10]}" in lines
    assert "data/talks.parquet  (above)" not in lines and "CHANGED" not in lines


def test_unpinned_sources_are_named_in_one_line(built):
    wanted = "not pinned to a commit: datasets.talks (revision: main)"
    assert built.said.stderr.splitlines().count(wanted) == 1
    assert wanted in built.snakemake("-n", "--quiet", "all", "--", *built.files).stderr


def test_nothing_is_fetched_or_planned_twice_and_every_byte_is_as_it_was_made(built):
    done = built.snakemake("-n", "--", *built.files)
    assert "Nothing to be done" in done.stdout + done.stderr
    assert len(built.hub.fetched()) == len({path for _, path, _ in built.hub.asked if "/resolve/" in path})
    run(built.checkout, "python", "-m", "scripts.verify_results", "--results", ROOT)


def test_another_commit_is_fetched_and_only_what_is_read_from_it_is_made_again(built):
    commit = built.hub.put("dataset", "tiny/choices", parquet(ranked(31)))
    (built.checkout / "newer.yaml").write_text(json.dumps({"datasets": {"choices": {"revision": commit}}}))
    done = built.snakemake("newer.yaml", "-n", "--", *built.files)
    assert jobs(done.stdout) == [
        f"curate_data {ROOT}/data/choices.parquet",
        f"fetch_data {ROOT}/source/datasets/choices/files",
    ]


def test_a_set_beyond_the_revisions_is_refused(built):
    done = run(
        built.checkout, "snakemake", "-n", "--configfile", "hub.yaml", "--", f"{ROOT}/prompts/asks-3.json", check=False
    )
    assert "prompts.asks.revision names 2 revisions; there is none for SET-3. Hint: " in done.stdout + done.stderr
