"""One DPO step of a small build by DeepSpeed, through the literal command: `resources` say how, the loss stays."""

import json
import shutil

import pytest

from tests.conftest import copy_checkout, run
from tests.slurm.conftest import SMALL

pytestmark = pytest.mark.long
HERE = SMALL | {"runtime": {"device": "cpu", "torch_threads": 1, "train_micro_batch": 2}}
POLICY = "results/tiny/runs/main/iter1/policy"


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A build of iteration 1 by one process that holds all of the model."""
    made = copy_checkout(tmp_path_factory.mktemp("plain") / "ouroboros")
    (made / "overlay.yaml").write_text(json.dumps(HERE))
    run(made, "snakemake", "iter1_policy", "--configfile", "overlay.yaml")
    return made


def nothing_to_do(folder, *command):
    done = run(folder, *command, "-n")
    return "Nothing to be done" in done.stdout + done.stderr


@pytest.mark.parametrize(
    "resources",
    [
        {"sharding": "zero2", "processes": 2},
        {"sharding": "zero3", "processes": 2},
        {"sharding": "zero2"},
        {"sharding": "zero3"},
    ],
    ids=lambda given: " ".join(map(str, given.values())),
)
def test_an_overlay_of_resources_trains_one_policy_by_deepspeed(tmp_path, plain, resources):
    made = shutil.copytree(plain, tmp_path / "ouroboros", symlinks=True)
    asked = {**HERE["resources"], "train_dpo": resources}
    (made / "overlay.yaml").write_text(json.dumps(HERE | {"resources": asked}))
    command = ("snakemake", "iter1_policy", "--configfile", "overlay.yaml")
    assert nothing_to_do(made, *command)
    (made / f"{POLICY}.json").unlink()
    run(made, *command)
    one, two = (json.loads((folder / f"{POLICY}.json").read_text()) for folder in (plain, made))
    assert two["settings"] == one["settings"] and two["counts"] == one["counts"]
    for key in ("steps", "first_loss", "last_loss"):
        assert two["metrics"][key] == pytest.approx(one["metrics"][key], abs=1e-5)
    facts = json.loads((made / f"{POLICY}.run.json").read_text())
    assert facts["processes"] == resources.get("processes", 1)
    assert facts["runtime"]["sharding"] == resources["sharding"]
    assert nothing_to_do(made, *command)
