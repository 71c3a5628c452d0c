"""The lineage of made-up results: exact trees, the graph as JSON, and what is wrong with a record."""

import json

import pytest

from scripts import lineage
from scripts.lib.stage import artifact
from tests.unit.results import make

RUN = {"finished": "2026-11-22T06:41:07+00:00", "git_commit": "23f503ff30c12204b6b9c9a42f54edce78f63f6e"}
CLEAN, DIRTY = RUN | {"git_dirty": False}, RUN | {"git_dirty": True}
SOURCE = "shared/hh/train.jsonl"


@pytest.fixture
def results(tmp_path):
    """One DPO step from an SFT policy, on two shards of rollouts; returns the root and the digests by path."""
    root = tmp_path / "results" / "tiny"
    digests = {}

    def add(path, *args, **kwargs):
        digests[path] = make(root, path, *args, **kwargs)

    licensed = {"metrics": {"license": "apache-2.0"}}
    add(
        "base/small/model", "convert_base", {"kind": "folder", "license": "x"}, {"parameters": 9}, **licensed, run=CLEAN
    )
    add("data/talks.parquet", "curate_data", {"size": 3}, metrics={"license": "mit"}, source=[SOURCE])
    trained = {"learning_rate": 2e-5, "schedule": "cosine", "weight_decay": 0.0, "nested": {"a": 1}}
    add("sft/one/policy", "train_sft", trained, {"rows_in": 3, "dropped": 0}, run=DIRTY, base=["base/small/model"],
        dataset=["data/talks.parquet"])  # fmt: skip
    add("prompts/asks-1.parquet", "make_prompts", {"number": 1})
    place = "sft/one/rollouts/eight/asks-1"
    for shard in range(2):
        settings = {"k": 8, "temperatures": [1.0, 0.7], "first": 2 * shard, "prompts": 2}
        add(f"{place}/{shard}.parquet", "sample_rollouts", settings, {"responses": 16}, run=CLEAN,
            policy=["sft/one/policy"], prompts=["prompts/asks-1.parquet"])  # fmt: skip
        add(f"{place}/rewards/gold/{shard}.parquet", "verify_rollouts", rollouts=[f"{place}/{shard}.parquet"])
    add(f"{place}/pairs/gold/best.parquet", "build_pairs", rollouts=[f"{place}/{shard}.parquet" for shard in range(2)],
        rewards=[f"{place}/rewards/gold/{shard}.parquet" for shard in range(2)])  # fmt: skip
    add("runs/main/iter1/policy", "train_dpo", {"beta": 0.1, "loss": ["sigmoid"], "sources": [["x", 1.0]]},
        pairs=[f"{place}/pairs/gold/best.parquet"], start=["sft/one/policy"])  # fmt: skip
    return root, {path: digest[:8] for path, digest in digests.items()}


def told(capsys, path, *options):
    code = lineage.main([str(path), *options])
    said = capsys.readouterr()
    return code, said.out + said.err


TREE = """\
runs/main/iter1/policy  train_dpo: beta 0.1, loss [sigmoid]; sha256 {runs/main/iter1/policy}
├── {P}/pairs/gold/best.parquet  build_pairs: sha256 {P/pairs/gold/best.parquet}
│   ├── {P}/rewards/gold/*.parquet  verify_rollouts: 2 shards
│   │   └── {P}/*.parquet  sample_rollouts: 2 shards; k 8, temperatures [1, 0.7]; responses 32; {CLEAN}
│   │       ├── sft/one/policy  train_sft: learning_rate 2e-05; rows_in 3; sha256 {sft/one/policy}; {DIRTY}
│   │       │   ├── base/small/model  convert_base: parameters 9; license apache-2.0; sha256 {base/small/model}; {CLEAN}
│   │       │   └── data/talks.parquet  curate_data: size 3; license mit; sha256 {data/talks.parquet}
│   │       │       └── shared/hh/train.jsonl  source file
│   │       └── prompts/asks-1.parquet  make_prompts: number 1; sha256 {prompts/asks-1.parquet}
│   └── {P}/*.parquet  (above)
└── sft/one/policy  (above)
"""


def expected(digests):
    text = TREE.replace("{CLEAN}", "2026-11-22 06:41 UTC, commit 23f503f")
    text = text.replace("{DIRTY}", "2026-11-22 06:41 UTC, commit 23f503f (dirty)")
    for path, digest in digests.items():
        text = text.replace(f"{{{path}}}", digest).replace(
            f"{{{path.replace('sft/one/rollouts/eight/asks-1', 'P')}}}", digest
        )
    return text.replace("{P}", "sft/one/rollouts/eight/asks-1")


@pytest.mark.parametrize("ending", ["policy", "policy/", "policy.json"])
def test_the_tree_of_a_policy(results, capsys, ending):
    root, digests = results
    assert told(capsys, f"{root}/runs/main/iter1/{ending}") == (0, expected(digests))


def test_pruned_weights_change_nothing(results, capsys):
    root, digests = results
    for folder in ("sft/one/policy", "runs/main/iter1/policy"):
        for file in (root / folder).iterdir():
            file.unlink()
        (root / folder).rmdir()
    assert told(capsys, root / "runs/main/iter1/policy") == (0, expected(digests))


def test_results_lie_anywhere_even_in_folders_with_names_of_the_grammar(results, capsys, tmp_path):
    root, digests = results
    moved = tmp_path / "runs" / "main" / "iter1" / "data" / "base"
    moved.parent.mkdir(parents=True)
    root.rename(moved)
    assert told(capsys, moved / "runs/main/iter1/policy") == (0, expected(digests))


def test_shards_of_other_settings_are_not_folded(results, capsys):
    root, _ = results
    place = "sft/one/rollouts/eight/asks-1"
    make(root, f"{place}/1.parquet", "sample_rollouts", {"k": 4, "first": 2, "prompts": 2}, {"responses": 8})
    said = told(capsys, root / f"{place}/pairs/gold/best.parquet")[1]
    assert "0.parquet  sample_rollouts: k 8, temperatures [1, 0.7]; responses 16;" in said
    assert "1.parquet  sample_rollouts: k 4; responses 8;" in said


def test_an_input_that_was_made_again_since_is_marked(results, capsys):
    root, digests = results
    place = "sft/one/rollouts/eight/asks-1"
    (root / "data/talks.parquet").write_text("other")
    manifest = artifact.read_json(root / "data/talks.json")
    artifact.write_json(root / "data/talks.json", manifest | {"output": "f" * 64})
    shard = artifact.read_json(root / place / "0.json")
    artifact.write_json(root / place / "0.json", shard | {"output": "e" * 64})
    code, said = told(capsys, root / "runs/main/iter1/policy")
    lines = said.splitlines()
    assert code == 0
    assert [
        line.lstrip("│ ├└─").split("  ")[0] + line[line.index("  CHANGED") :] for line in lines if "CHANGED" in line
    ] == [
        f"{place}/*.parquet  CHANGED SINCE it was read (1 of 2 shards)",
        f"data/talks.parquet  CHANGED SINCE it was read as {digests['data/talks.parquet']}",
        f"{place}/*.parquet  CHANGED SINCE it was read (1 of 2 shards)",
    ]
    assert lines[-2:] == [
        "3 inputs changed after being read: what was made from it is outdated.",
        "Hint: `snakemake -n all` shows what would be rebuilt.",
    ]


def test_the_report_reads_manifests_and_tables_and_names_each_once(results, capsys):
    root, _ = results
    make(root, "report.html", "build_report", evaluations=["data/talks.parquet"], manifests=["data/talks.json"])
    said = told(capsys, root / "report.html")[1]
    assert [line.strip("│ ├└─").split("  ")[0] for line in said.splitlines()] == [
        "report.html",
        "data/talks.parquet",
        SOURCE,
    ]
    (root / "data/talks.json").write_text((root / "data/talks.json").read_text() + " ")
    assert "data/talks.parquet  curate_data" in (said := told(capsys, root / "report.html")[1])
    assert "CHANGED SINCE" in said


def test_the_graph_as_json(results, capsys):
    root, _ = results
    code, said = told(capsys, root / "sft/one/policy", "--json")
    graph = json.loads(said)
    assert code == 0
    assert graph["results"] == str(root)
    assert {node["path"]: node["manifest"].get("stage") for node in graph["nodes"]} == {
        "sft/one/policy": "train_sft",
        "base/small/model": "convert_base",
        "data/talks.parquet": "curate_data",
        SOURCE: None,
    }
    policy = next(node for node in graph["nodes"] if node["path"] == "sft/one/policy")
    assert policy["manifest"] == artifact.read_json(root / "sft/one/policy.json")
    assert policy["run"] == DIRTY
    edges = {(edge["from"], edge["to"], edge["input"], edge["agrees"]) for edge in graph["edges"]}
    assert edges == {
        ("base/small/model", "sft/one/policy", "base", True),
        ("data/talks.parquet", "sft/one/policy", "dataset", True),
        (SOURCE, "data/talks.parquet", "source", None),
    }


@pytest.mark.parametrize(
    ("path", "says"),
    [
        (
            "runs/main/iter7/policy",
            "iter7/policy.json: no such manifest; the artifact you asked about needs it\nHint: ",
        ),
        ("somewhere/else.parquet", "somewhere/else: not the place of an artifact\nHint: give a table X.parquet"),
    ],
)
def test_what_is_no_artifact_is_refused(results, capsys, path, says):
    code, said = told(capsys, results[0] / path)
    assert code == 2
    assert says in said


def test_a_missing_manifest_is_named_with_what_was_made_from_it(results, capsys):
    (results[0] / "base/small/model.json").unlink()
    code, said = told(capsys, results[0] / "runs/main/iter1/policy")
    assert code == 2
    assert "base/small/model.json: no such manifest; sft/one/policy was made from it\nHint: " in said


def test_a_manifest_of_something_else_is_refused(results, capsys):
    artifact.write_json(results[0] / "base/small/model.json", {"stage": "x"})
    code, said = told(capsys, results[0] / "sft/one/policy")
    assert code == 2
    assert "not a manifest: it has no settings, inputs, output, counts, metrics\nHint: " in said
