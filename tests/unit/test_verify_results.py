"""Verification of made-up results: every kind of damage is named, and what is fine is not."""

import shutil

import pytest

from scripts import verify_results
from tests.unit.results import make


@pytest.fixture
def results(tmp_path):
    root = tmp_path / "tiny"
    make(root, "base/small/model")
    make(root, "runs/main/iter1/policy")
    make(root, "data/talks.parquet")
    make(root, "data/talks/pairs/best.parquet")
    make(root, "report.html")
    for undescribed in ("logs/data/talks.json", "benchmarks/x.parquet", "work/state/y.part"):
        (root / undescribed).parent.mkdir(parents=True)
        (root / undescribed).write_text("not ours to judge")
    return root


def told(root, capsys):
    """(exit code, output without progress)."""
    code = verify_results.main(["--results", str(root)])
    said = capsys.readouterr()
    return code, [line for line in (said.out + said.err).splitlines() if not line.startswith("verified ")]


def test_whole_results_have_no_damage(results, capsys):
    size = sum(
        file.stat().st_size
        for file in results.rglob("*")
        if file.suffix in (".parquet", ".html", ".safetensors") and "benchmarks" not in file.parts
    )
    assert told(results, capsys) == (0, [f"{results}: 5 artifacts, 0 of them pruned weights, 0.0 MB: no problems"])
    stems, _ = verify_results.find(results)
    assert sum(verify_results.check(stem).size for stem in stems) == size + 2 * len("{}")


def test_progress_is_told(results, capsys):
    verify_results.main(["--results", str(results)])
    assert "verified 5 of 5 artifacts, 0.0 MB\n" in capsys.readouterr().out


def test_pruned_weights_are_counted_and_no_damage(results, capsys):
    shutil.rmtree(results / "runs/main/iter1/policy")
    assert told(results, capsys) == (0, [f"{results}: 5 artifacts, 1 of them pruned weights, 0.0 MB: no problems"])


DAMAGES = {
    "another byte in a table": (
        lambda root: (root / "data/talks.parquet").write_text("x"),
        "data/talks.parquet: sha256 is",
        "its manifest says",
    ),
    "another byte in weights": (
        lambda root: (root / "base/small/model/model.safetensors").write_bytes(b"x"),
        "base/small/model/model.safetensors: sha256 is",
        "model.sha256 says",
    ),
    "a file of weights is gone": (
        lambda root: (root / "base/small/model/model.safetensors").unlink(),
        "base/small/model/model.safetensors: missing",
        "",
    ),
    "a file too many among weights": (
        lambda root: (root / "base/small/model/x").touch(),
        "base/small/model/x: not listed",
        "",
    ),
    "other digests": (
        lambda root: (root / "base/small/model.sha256").open("a").write("\n"),
        "base/small/model.sha256: sha256 is",
        "the manifest says",
    ),
    "other digests of pruned weights": (
        lambda root: (
            shutil.rmtree(root / "runs/main/iter1/policy"),
            (root / "runs/main/iter1/policy.sha256").write_text("x"),
        ),
        "runs/main/iter1/policy.sha256: sha256 is",
        "the manifest says",
    ),
    "weights without digests": (
        lambda root: (root / "base/small/model.sha256").unlink(),
        "base/small/model: no digests file",
        "",
    ),
    "weights without manifest": (
        lambda root: (root / "base/small/model.json").unlink(),
        "base/small/model: no manifest model.json beside it",
        "",
    ),
    "weights without either": (
        lambda root: [(root / f"base/small/model.{ending}").unlink() for ending in ("json", "sha256")],
        "base/small/model: no manifest model.json beside it",
        "",
    ),
    "a table without manifest": (
        lambda root: (root / "data/talks.json").unlink(),
        "data/talks: no manifest talks.json beside it",
        "",
    ),
    "a manifest without table": (
        lambda root: (root / "data/talks.parquet").unlink(),
        "data/talks.json: describes nothing: there is no table or folder talks",
        "",
    ),
    "a manifest without page": (
        lambda root: (root / "report.html").unlink(),
        "report.json: describes nothing",
        "",
    ),
    "a manifest that is cut off": (
        lambda root: (root / "data/talks.json").write_text("{"),
        "data/talks.json: Expecting property name",
        "",
    ),
    "a manifest of something else": (
        lambda root: (root / "data/notes.json").write_text("{}"),
        "data/notes.json: not a manifest: it has no `output`",
        "",
    ),
    "a half-written folder": (
        lambda root: (root / "base/small/.model.7.part").mkdir(),
        "base/small/.model.7.part: half-written",
        "",
    ),
    "a half-written table": (
        lambda root: (root / "data/.talks.parquet.7.part").touch(),
        "data/.talks.parquet.7.part: half-written",
        "",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damage_is_named_with_a_hint(results, capsys, name):
    damage, first, second = DAMAGES[name]
    damage(results)
    code, (summary, found, hint) = told(results, capsys)
    assert code == 2
    assert summary.endswith(": 1 problem")
    assert found.startswith(f"  - {results}/{first}")
    assert second in found
    assert hint.startswith("    Hint: ")


def test_every_damage_is_listed(results, capsys):
    (results / "data/talks.parquet").write_text("x")
    (results / "report.json").unlink()
    (results / "report.html").unlink()
    (results / "base/small/model/config.json").write_text("x")
    code, said = told(results, capsys)
    assert code == 2
    assert [line.split(": ")[0] for line in said if line.startswith("  - ")] == [
        f"  - {results}/base/small/model/config.json",
        f"  - {results}/data/talks.parquet",
    ]
    assert said[0].endswith(": 2 problems")


def test_a_file_that_cannot_be_read_is_a_damage(results, capsys, monkeypatch):
    def fail(path):
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr(verify_results, "file_sha256", fail)
    code, said = told(results, capsys)
    assert code == 2
    assert (
        f"  - {results}/data/talks: cannot be read: [Errno 5] Input/output error: '{results}/data/talks.parquet'"
        in said
    )


def test_a_folder_without_artifacts_is_refused(tmp_path, capsys):
    code, said = told(tmp_path, capsys)
    assert code == 2
    assert said == [
        f"verify_results: {tmp_path}: no artifacts there",
        "Hint: run `snakemake all` first, or name other results.",
    ]
