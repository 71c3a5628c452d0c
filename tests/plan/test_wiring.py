"""Every job that Snakemake plans is wired as its stage's card says: inputs by role, resources, and what starts it.

The jobs are Snakemake's own, as a dry run prints them, for every preset and every profile. A card and a rule that
disagree are refused at start.
"""

import re
import shlex

import pytest

from scripts.lib.data import sources
from scripts.lib.planning import cluster, config, wiring
from scripts.lib.planning.cards import CARDS
from scripts.lib.planning.paths import is_folder
from scripts.lib.planning.plan import Plan
from scripts.lib.stage.errors import ConfigError
from tests.conftest import ROOT, copy_checkout, planned_jobs, run
from tests.plan.conftest import PRESETS, PROFILES, SITE


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("preset", PRESETS)
def test_every_job_has_the_inputs_resources_and_launch_words_of_its_card(
    site_filled_in, dry_run, monkeypatch, preset, profile
):
    # The plan looks for local files and for vLLM's environment from the repository's root.
    for module in (sources, cluster):
        monkeypatch.setattr(module, "ROOT", site_filled_in)
    site = SITE if profile == "slurm" else None
    files = [] if preset == "tiny" else [ROOT / "config" / "presets" / f"{preset}.yaml"]
    plan = Plan(config.load(*files))
    jobs = [job for job in planned_jobs(dry_run(preset, profile).stdout) if job["rule"] in CARDS]
    assert {job["rule"] for job in jobs} == {plan.maker(path)[0] for path in plan.artifacts(*plan.asked("all"))}, (
        "a stage of the plan has no job"
    )
    for job in jobs:
        stage, wildcards = plan.maker(job["output"][0])
        assert stage == job["rule"]
        card = CARDS[stage]
        # Inputs: what the card reads, and the digests of folders.
        read = plan.reads(job["output"][0])
        digests = [f"{path}.sha256" for path in read if is_folder(path)]
        assert set(job["input"]) == {*read, *digests}, stage
        # Resources: what the cluster is asked for by the card's computation.
        wanted = cluster.resources(plan.config, stage, site)
        asked = {key: job["resources"].get(key) for key in cluster.RESOURCES if key in job["resources"]}
        assert asked == {key: str(value) for key, value in wanted.items()}, stage
        gpus = cluster.needs(plan.config, stage).gpus
        assert (gpus > 0) == (card.compute is not None and plan.config.runtime.device != "cpu"), stage
        assert ("gpu" in asked or "gres" in asked) == (gpus > 0), stage
        # What starts it, down to the last word of the module.
        words = shlex.split(job["shell"])
        launch = shlex.split(cluster.launch(plan, stage, wildcards, site))
        assert words[: len(launch) + 1] == [*launch, f"scripts.{stage}"], stage
        assert words[words.index("--settings") + 1] == plan.settings_json(stage, wildcards)
        assert words[words.index("--code") + 1] == plan.code(stage, wildcards)
        roles = plan.roles(stage, wildcards)
        for role, paths in roles.items():
            listed = [paths] if isinstance(paths, str) else paths
            at = words.index(f"--{role.replace('_', '-')}") + 1
            assert words[at : at + len(listed)] == listed, (stage, role)


def test_local_rules_are_those_of_local_cards():
    """On a cluster a local step runs where Snakemake does; the others are submitted."""
    said = {}
    for path in sorted((ROOT / "rules").glob("*.smk")):
        for block in re.split(r"^use rule stage as (?=\w+ with:$)", path.read_text(), flags=re.MULTILINE)[1:]:
            said[block.split(" ")[0]] = "    localrule: True\n" in block
    assert said == {name: card.local for name, card in CARDS.items()}


# Wrong wirings are refused

MUTANTS = {
    "inputs of another stage": (
        "rules/policy.smk",
        'unpack(inputs("train_dpo"))',
        'unpack(inputs("train_raft"))',
        "card train_dpo: inputs: the rule's input 'pairs' is not what the card says",
    ),
    "another path": (
        "rules/policy.smk",
        '"<results>/runs/{run}/iter{n}/policy.json"',
        '"<results>/runs/{run}/iter{n}/policy_.json"',
        "card train_dpo: output: is {",
    ),
    "another stage's names": (
        "rules/policy.smk",
        '**made_by("train_dpo")',
        '**made_by("train_raft")',
        "card train_dpo: makes: is {'run': 'main|once|offline'}, its rule says {'run': 'raft'}",
    ),
    "a rule without a card": (
        "rules/policy.smk",
        "use rule stage as train_raft with:",
        "use rule stage as train_craft with:",
        "rule train_craft: makes an artifact and has no card",
    ),
    "a card without a rule": (
        "scripts/lib/planning/cards/policy.py",
        'name="train_raft"',
        'name="train_craft"',
        "card train_raft: there is none. Hint: the stages are ",
    ),
    "a wildcard outside the grammar": (
        "scripts/lib/planning/cards/policy.py",
        'OUTPUT = "runs/{run}/iter{n}/policy"',
        'OUTPUT = "runs/{run}/iter{m}/policy"',
        "card train_dpo: output has ['m'], which the grammar lacks",
    ),
    "training without a trainer": (
        "scripts/lib/planning/cards/policy.py",
        "            trainer=dpo,\n",
        "",
        "card train_dpo: compute trains without a `trainer`",
    ),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_wrong_wiring_is_an_error_at_start_that_names_card_and_field(tmp_path, mutant):
    file, before, after, said = MUTANTS[mutant]
    folder = copy_checkout(tmp_path / "ouroboros")
    text = (folder / file).read_text()
    assert before in text
    (folder / file).write_text(text.replace(before, after))
    done = run(folder, "snakemake", "-n", "iter1_policy", check=False)
    assert done.returncode != 0
    assert said in done.stdout + done.stderr


def test_rules_cannot_ask_for_another_stages_gpus():
    """Resources, threads, settings and code of a job follow from the rule's name and output."""
    for path in sorted((ROOT / "rules").glob("*.smk")):
        if path.name in ("common.smk", "stage.smk", "targets.smk", "upkeep.smk"):
            continue
        assert not re.search(r"^    (resources|threads|params|priority|shell):", path.read_text(), re.MULTILINE), path


def test_every_rule_that_differs_is_told_at_once():
    plan = Plan(config.load(ROOT / "config" / "config.yaml"))
    rules = {
        name: wiring.Wired(wiring.outputs(plan, card), wiring.constraints(plan, name)) for name, card in CARDS.items()
    }
    wiring.check(plan, rules)
    del rules["evaluate"]
    rules["train_dpo"] = wiring.Wired({}, {})
    with pytest.raises(ConfigError) as caught:
        wiring.check(plan, rules)
    lines = str(caught.value).splitlines()
    assert lines[0] == "rules and cards differ:"
    assert [line.split(": ")[0] for line in lines[1:]] == [
        "  - card train_dpo",
        "  - card train_dpo",
        "  - card evaluate",
    ]
