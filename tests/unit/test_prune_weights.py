"""Pruning in made-up results of the tiny preset: what goes, what stays, and why."""

import copy
import json

import pytest

from scripts import prune_weights
from scripts.lib.planning.config import load, resolve
from scripts.lib.planning.plan import Plan
from scripts.lib.stage import artifact
from scripts.lib.stage.digest import ROOT
from tests.unit.results import make

TINY = load(ROOT / "config" / "config.yaml").model_dump()
FIRST, SECOND, THIRD = (f"runs/main/iter{n}/policy" for n in (1, 2, 3))
ROLLOUTS = "runs/main/iter1/rollouts/best_of_8/requests-2/0.parquet"


@pytest.fixture
def config(tmp_path):
    given = copy.deepcopy(TINY)
    given["results"] = str(tmp_path / "tiny")
    given["runs"] = {"main": given["runs"]["main"] | {"keep": "last"}}
    return given


@pytest.fixture
def root(config, tmp_path):
    """Results in which everything that is made from the run's weights is there."""
    plan, root = Plan(resolve(config)), tmp_path / "tiny"
    for name in ("base/world/model", "reward/bt/model", "sft/tiny/policy"):
        make(root, name)
    for n in (1, 2, 3):
        planned = json.loads(plan.settings_json("train_dpo", {"run": "main", "n": str(n)}))
        make(root, f"runs/main/iter{n}/policy", "train_dpo", planned, start=[f"{plan.start('main', n)}/policy"])
    for n in (1, 2, 3):
        weights = f"runs/main/iter{n}/policy"
        for path in prune_weights.readers_of(plan)[plan.policy(f"runs/main/iter{n}")]:
            name = path.removeprefix(f"{root}/")
            if name.endswith(".parquet"):
                make(root, name, settings=json.loads(plan.settings_json(*plan.maker(path))), policy=[weights])
    return root


def told(config, capsys):
    code = prune_weights.main(["--config", json.dumps(config)])
    return code, capsys.readouterr().out.splitlines()


def weights(root):
    return sorted(str(path.parent.relative_to(root)) for path in root.rglob("model.safetensors"))


UNTOUCHED = ["base/world/model", "reward/bt/model"]


def test_what_no_run_keeps_is_freed_and_its_records_stay(config, root, capsys):
    size = sum(file.stat().st_size for file in (root / FIRST).iterdir())
    records = {path: path.read_bytes() for path in root.rglob("policy.*")}
    assert told(config, capsys) == (
        0,
        [
            "freed  runs/main/iter1: 0.0 MB",
            "freed  runs/main/iter2: 0.0 MB",
            "kept   runs/main/iter3: runs.main.keep is last",
            "0.0 MB freed; `make phases TARGET=weights` retrains those of the chosen run",
        ],
    )
    assert size > 0
    assert weights(root) == [*UNTOUCHED, THIRD, "sft/tiny/policy"]
    assert records == {path: path.read_bytes() for path in root.rglob("policy.*")}
    assert list(root.rglob("*.part")) == []
    assert "gone   runs/main/iter1: no weights on disk" in told(config, capsys)[1]


@pytest.mark.parametrize(
    ("keep", "left"), [("all", [FIRST, SECOND, THIRD]), ([2], [SECOND]), ([], [])], ids=["all", "2", "none"]
)
def test_keep_names_what_stays(config, root, capsys, keep, left):
    config["runs"]["main"]["keep"] = keep
    assert told(config, capsys)[0] == 0
    assert weights(root) == [*UNTOUCHED, *left, "sft/tiny/policy"]


def change(file, **values):
    artifact.write_json(file, artifact.read_json(file) | values)


OBSTACLES = {
    "rollouts are missing": (
        lambda root: (root / ROLLOUTS).unlink(),
        f"{ROLLOUTS} has yet to be made from them",
    ),
    "a manifest of rollouts is missing": (
        lambda root: (root / ROLLOUTS).with_suffix(".json").unlink(),
        f"{ROLLOUTS} has yet to be made from them",
    ),
    "the next iteration is missing": (
        lambda root: (root / "runs/main/iter2/policy.json").unlink(),
        f"{SECOND} has yet to be made from them",
    ),
    "rollouts were made from other weights": (
        lambda root: change(
            (root / ROLLOUTS).with_suffix(".json"), inputs={"policy": [{"path": FIRST, "sha256": "0"}]}
        ),
        f"{ROLLOUTS} was made from other weights and must be rebuilt",
    ),
    "rollouts were made with other settings": (
        lambda root: change((root / ROLLOUTS).with_suffix(".json"), settings={"k": 4}),
        f"{ROLLOUTS} was made with other settings and must be rebuilt",
    ),
    "the manifest is missing": (
        lambda root: (root / "runs/main/iter1/policy.json").unlink(),
        "its manifest or digests are missing; `snakemake all` retrains it",
    ),
    "the manifest is another's": (
        lambda root: change(root / "runs/main/iter1/policy.json", output="0"),
        "policy.sha256 does not match policy.json; `snakemake verify` says more",
    ),
    "somebody's file lies among the weights": (
        lambda root: (root / FIRST / "notes.txt").touch(),
        "notes.txt is not among the files that training wrote; move it elsewhere",
    ),
}


@pytest.mark.parametrize("name", OBSTACLES)
def test_weights_that_are_still_needed_are_left_with_the_reason(config, root, capsys, name):
    damage, why = OBSTACLES[name]
    damage(root)
    code, said = told(config, capsys)
    assert code == 0
    assert said[0] == f"left   runs/main/iter1: {why}"
    assert FIRST in weights(root)


def test_a_broken_manifest_stops_it_with_a_hint(config, root, capsys):
    (root / "runs/main/iter1/policy.json").write_text("{")
    code, said = told(config, capsys)
    assert code == 2
    assert "policy.json: Expecting property name" in said[0]
    assert said[-1].startswith("Hint: ")
