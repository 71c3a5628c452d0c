"""What differs from the plan, in words, over made-up results."""

import copy
import shutil
from pathlib import Path

import pytest

from scripts import audit_results
from scripts.lib.planning import audit, config
from scripts.lib.planning.plan import Plan
from scripts.lib.stage import artifact, digest

TINY = config.load(digest.ROOT / "config" / "config.yaml").model_dump()
EVERY = len((digest.ROOT / "tests/plan/golden/tiny_all.txt").read_text().splitlines()) - 1  # jobs of `all` but itself


def plan_at(root, change=lambda config: None):
    given = copy.deepcopy(TINY) | {"results": str(root)}
    change(given)
    return Plan(config.resolve(given))


@pytest.fixture(scope="module")
def original(tmp_path_factory, make_up):
    """The tiny preset's results, made up."""
    root = tmp_path_factory.mktemp("original") / "tiny"
    make_up(plan_at(root))
    return root


@pytest.fixture
def root(original, tmp_path):
    """A copy of them that a test may damage."""
    return shutil.copytree(original, tmp_path / "tiny")


def edit(root, name, **keys):
    path = root / f"{name}.json"
    artifact.write_json(path, artifact.read_json(path) | keys)


def differing(plan):
    told = {path: audit.differences(plan, path) for path in plan.artifacts(*plan.asked("all"))}
    return {path.removeprefix(plan.root + "/"): words for path, words in told.items() if words}


# Artifacts


def test_results_made_by_the_plan_agree_with_it(root):
    assert differing(plan_at(root)) == {}


def test_beta_of_one_run_differs_in_its_three_policies_with_both_values(root):
    told = differing(plan_at(root, lambda c: c["runs"]["main"]["dpo"].update(beta=0.2)))
    assert told == {f"runs/main/iter{n}/policy": ["dpo beta 0.1 -> 0.2"] for n in (1, 2, 3)}


def test_settings_changes_are_named_with_their_keys(root):
    def change(c):
        c["samplings"]["best_of_8"].update(k=4, temperatures=[1, 0.7])

    told = differing(plan_at(root, change))
    assert told["sft/tiny/rollouts/best_of_8/requests-1/0.parquet"] == [
        "rollouts k 8 -> 4",
        "rollouts temperatures [1.0] -> [1.0, 0.7]",
    ]
    assert set(told) == {"sft/tiny/rollouts/best_of_8/all_requests-1/0.parquet"} | {
        f"{policy}/rollouts/best_of_8/requests-{n}/0.parquet"
        for policy, n in (("sft/tiny", 1), ("runs/main/iter1", 2), ("runs/main/iter2", 3))
    }


def test_another_number_of_tables_is_told_by_setting_and_by_input(root):
    mix = [{"dataset": "annotations", "pairing": "as_given"}]
    told = differing(plan_at(root, lambda c: c["runs"]["main"].update(mix=mix)))
    assert told["runs/main/iter1/policy"] == [
        'dpo sources: ["data/annotations/pairs/as_given.parquet", 1.0] is new',
        "input data/annotations/pairs/as_given.parquet is new",
        "input data/annotations/pairs/as_given/reference/sft/tiny.parquet is new",
    ]


def test_a_run_taken_away_is_told_by_the_report_alone(root):
    told = differing(plan_at(root, lambda c: c["runs"].pop("offline")))
    assert set(told) == {"report.html"}
    assert told["report.html"][0] == ('report runs: ["offline", "dpo", ["sft/tiny", "runs/offline/iter1"]] is gone')
    assert "input runs/offline/iter1/eval/heldout.parquet is gone" in told["report.html"]


def test_another_method_is_told_as_another_stage(root):
    edit(root, "runs/offline/iter1/policy", stage="train_raft")
    assert differing(plan_at(root))["runs/offline/iter1/policy"] == ["made by train_raft -> train_dpo"]


def test_changed_code_names_the_modules(root):
    code = digest.code_digest("train_dpo").replace(" models.chat:", " models.chat:0")
    edit(root, "runs/main/iter1/policy", code=code)
    assert differing(plan_at(root))["runs/main/iter1/policy"] == ["code: models.chat changed"]


def test_an_input_made_again_with_other_contents_is_named_by_those_that_read_it(root):
    policy = root / "runs/main/iter3/policy.sha256"
    policy.write_text("other weights")
    edit(root, "runs/main/iter3/policy", output=digest.file_sha256(policy))
    told = differing(plan_at(root))
    assert told.pop("report.html") == ["input runs/main/iter3/policy.json is another now"]
    assert told == {
        "runs/main/iter3/rollouts/evaluation/heldout-1/0.parquet": ["input runs/main/iter3/policy is another now"]
    }


@pytest.mark.parametrize(
    ("remove", "artifact", "words"),
    [
        ("data/annotations.json", "data/annotations.parquet", ["manifest is missing"]),
        ("data/annotations.parquet", "data/annotations.parquet", ["file is missing"]),
        ("sft/tiny/policy.sha256", "sft/tiny/policy", ["digests file is missing"]),
        ("reward/bt/model/", "reward/bt/model", ["weights are missing"]),
    ],
)
def test_missing_files_are_named(root, remove, artifact, words):
    place = root / remove
    shutil.rmtree(place) if place.is_dir() else place.unlink()
    told = audit.differences(plan_at(root), f"{root}/{artifact}")
    assert told == words


def test_what_was_never_made_is_not_made_yet(tmp_path):
    plan = plan_at(tmp_path)
    assert {line for words in differing(plan).values() for line in words} == {"not made yet"}
    assert audit.made(plan.report()) is False


def test_a_policy_without_its_weights_folder_was_pruned_and_agrees(root):
    plan, folder = plan_at(root), root / "runs/main/iter1/policy"
    assert audit.pruned(plan, str(folder)) is False
    folder.rmdir()
    assert audit.pruned(plan, str(folder)) is True
    assert differing(plan) == {}


def test_digests_that_the_manifest_does_not_name_are_told(root):
    (root / "sft/tiny/policy.sha256").write_text("damaged")
    assert differing(plan_at(root))["sft/tiny/policy"] == ["digests file is not the one that the manifest names"]


def test_a_broken_manifest_is_told(root):
    (root / "data/annotations.json").write_text("{")
    (words,) = audit.differences(plan_at(root), f"{root}/data/annotations.parquet")
    assert words.startswith(f"manifest cannot be read: {root}/data/annotations.json: ")


def test_another_format_of_manifests_is_told(root):
    edit(root, "data/annotations", format=0)
    assert "manifest format 0 -> 1" in differing(plan_at(root))["data/annotations.parquet"]


def test_a_source_that_is_not_here_is_told_and_not_an_error(root):
    block = {"kind": "files", "type": "preferences", "path": "no/such/folder"}
    (words,) = differing(plan_at(root, lambda c: c["datasets"].update(annotations=block)))["data/annotations.parquet"]
    assert words.startswith("settings cannot be told: datasets.annotations.path = 'no/such/folder'")


# Words


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ({"beta": 0.1}, {"beta": 0.1}, []),
        ({"beta": 1}, {"beta": 1.0}, ["dpo beta 1 -> 1.0"]),
        ({"a": {"b": 1}}, {"a": {"b": 2}}, ["dpo a.b 1 -> 2"]),
        ({}, {"a": None}, ["dpo a null is new"]),
        ({"a": "x"}, {}, ["dpo a x is gone"]),
        ({"a": [1]}, {"a": [1, 2]}, ["dpo a [1] -> [1, 2]"]),
        ({"a": ["x" * 40, "y" * 40]}, {"a": ["y" * 40, "x" * 40]}, ["dpo a: the order is another"]),
        ({"a": "x" * 80}, {"a": "y"}, [f"dpo a {'x' * 59}… -> y"]),
        (
            {"files": [f"{'ab' * 32}  a.jsonl"]},
            {"files": [f"{'cd' * 32}  a.jsonl"]},
            ["dpo files: ababababab…  a.jsonl is gone, cdcdcdcdcd…  a.jsonl is new"],
        ),
        (
            {"a": []},
            {"a": [str(i) * 30 for i in range(6)]},
            ["dpo a: " + ", ".join(f"{str(i) * 30} is new" for i in range(4)) + " and 2 more"],
        ),
    ],
)
def test_settings_in_words(old, new, words):
    assert audit.settings_in_words("dpo", old, new) == words


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("a:1 b:2", "a:1 b:2", []),
        ("a:1 b:2", "a:1 b:3", ["code: b changed"]),
        ("a:1 b:2", "a:0 b:3", ["code: a, b changed"]),
        ("a:1", "a:1 x:2", ["code: new import x"]),
        ("a:1 x:2", "a:1", ["code: x is no longer imported"]),
        ("a:1 torch==2.12.0", "a:1 torch==2.13.0", ["torch 2.12.0 -> 2.13.0"]),
        ("a:1", "a:1 torch==2.13.0", ["torch not named -> 2.13.0"]),
        ("a:1 b:2", "b:2 a:1", ["code a:1 b:2 -> b:2 a:1"]),
    ],
)
def test_code_in_words(old, new, words):
    assert audit.code_in_words(old, new) == words


# The target


def run_audit(capsys, plan):
    code = audit_results.main(["--config", plan.config.model_dump_json()])
    return code, capsys.readouterr().out.splitlines()


def test_an_audit_of_agreeing_results_counts_them(root, capsys):
    assert run_audit(capsys, plan_at(root)) == (0, [f"{EVERY} artifacts agree with the plan"])


def test_an_audit_skips_what_is_not_made_and_tells_of_pruned_weights(root, capsys):
    for name in ("report.html", "report.json"):
        (root / name).unlink()
    (root / "runs/main/iter1/policy").rmdir()
    said = f"{EVERY - 1} artifacts agree with the plan (1 of {EVERY} not made yet; weights of 1 pruned)"
    assert run_audit(capsys, plan_at(root)) == (0, [said])


def test_an_audit_lists_what_differs_and_ends_with_a_hint(root, capsys):
    code, lines = run_audit(capsys, plan_at(root, lambda c: c["runs"]["main"]["dpo"].update(beta=0.2)))
    assert code == 2
    assert lines[:3] == [f"{root}/runs/main/iter{n}/policy: dpo beta 0.1 -> 0.2" for n in (1, 2, 3)]
    assert lines[3] == f"3 of {EVERY} artifacts differ from the plan"
    assert lines[4].startswith("Hint: ")
    assert len(lines) == 5


def test_an_audit_changes_no_file(root, capsys):
    def state():
        return {path: path.stat().st_mtime_ns for path in Path(root).rglob("*")}

    before = state()
    run_audit(capsys, plan_at(root, lambda c: c["runs"]["main"]["dpo"].update(beta=0.2)))
    assert state() == before
