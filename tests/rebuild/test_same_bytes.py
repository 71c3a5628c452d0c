"""Early cut-off by phases: a step made again with the same bytes sends nothing that lies below it running.

Within one call of Snakemake everything below a job that runs is run too. Who changes code that should change no
result builds that step's files first, and looks at the plan of the rest then.
"""

import json
import shutil

import pytest

from tests.rebuild.edits import append
from tests.rebuild.graph import AT_ONCE, BASE, POLICIES, REPORT, SFT, below, data, dpo, prompts, reward, sample, select

MAIN = [f"runs/main/iter{n}" for n in (1, 2, 3)]
# The jobs of a rule in phases, none of which lies below another of its own phase.
PHASES = {
    "make_base": [[BASE]],
    "curate_data": [[data("demonstrations"), data("annotations"), data("annotations_heldout")]],
    "make_prompts": [[prompts("heldout-1"), *(prompts(f"requests-{n}") for n in (1, 2, 3)), prompts(f"{AT_ONCE}-1")]],
    "train_sft": [[POLICIES[SFT]]],
    "train_reward": [[reward()]],
    "select_pairs": [[select("as_given")]],
    "sample_rollouts": [
        [sample(SFT, 1), sample(SFT, 1, asked=AT_ONCE), sample(SFT, None), sample("runs/offline/iter1", None)],
        [sample(MAIN[0], 2), *(sample(policy, None) for policy in (MAIN[0], "runs/once/iter1", "runs/raft/iter1"))],
        [sample(MAIN[1], 3), sample(MAIN[1], None)],
        [sample(MAIN[2], None)],
    ],
    "train_dpo": [[dpo("main", 1), dpo("once", 1), dpo("offline", 1)], [dpo("main", 2)], [dpo("main", 3)]],
}
# The report tells of these, so it reads their manifests, which name the code.
TOLD = {"train_sft", "train_reward", "train_dpo"}


def manifest(job: str) -> str:
    return f"{job.split()[1].removesuffix('.parquet')}.json"


@pytest.fixture(scope="session")
def continued(builds, side_by_side):
    """(jobs run in each phase, jobs planned afterwards) where a rule's code changed and its bytes did not."""

    def change(rule: str) -> tuple[list[set[str]], set[str]]:
        checkout = builds.copy()
        append(f"scripts/{rule}.py", "CHANGED = 1\n")(checkout)
        old = json.loads((checkout / manifest(PHASES[rule][0][0])).read_text())["code"]
        ran = [set(builds.build(checkout, *map(manifest, jobs), STANDIN_CODE=old)) for jobs in PHASES[rule]]
        planned = builds.plan(checkout, "all")
        shutil.rmtree(checkout)
        return ran, planned

    return side_by_side(change, "phased")


@pytest.mark.parametrize("phased", PHASES)
def test_the_same_bytes_again_send_nothing_below_running(continued, phased):
    ran, planned = continued[phased].result()
    assert ran == [set(jobs) for jobs in PHASES[phased]]
    assert planned == ({REPORT, "all"} if phased in TOLD else set())


def test_other_bytes_do(builds):
    """The same change as above where the bytes differ: everything below is left to do."""
    checkout = builds.copy()
    append("scripts/train_sft.py", "CHANGED = 1\n")(checkout)
    builds.build(checkout, manifest(POLICIES[SFT]))
    assert builds.plan(checkout, "all") == below(POLICIES[SFT]) - {POLICIES[SFT]}
