"""The profiles: found where people look, none of them plans anything else, and each says what it lacks."""

import json
import os
import stat

import pytest
import yaml

from tests.conftest import ROOT, copy_checkout, jobs, run

PROFILES = {path.parent.name: yaml.safe_load(path.read_text()) for path in ROOT.glob("profiles/*/config.yaml")}
SITE = "account: a\ncpu_partition: c\ngpu_partition: g\ngpu_model: null\nscratch: null\n"
SITE += "max_mem_mb: null\nmax_runtime: null\n"
INTERPRETERS = "train_python: null\nrollout_python: null\n"


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch):
    """SLURM may be installed here, or even run; it answers that it has no configuration."""
    monkeypatch.setenv("SLURM_CONF", os.devnull)


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A checkout whose site is filled in."""
    folder = copy_checkout(tmp_path_factory.mktemp("filled") / "ouroboros")
    (folder / "profiles" / "slurm" / "site.yaml").write_text(SITE + INTERPRETERS)
    return folder


def test_the_slurm_profile_says_again_what_the_default_says():
    # The look at the command line is no option; for another profile the Snakefile takes one.
    said = {key: value for key, value in PROFILES["default"].items() if key != "jobs" and not key.startswith("__")}
    assert {key: PROFILES["slurm"].get(key) for key in said} == said


def test_the_link_leads_to_the_profile():
    assert (ROOT / "slurm").is_symlink()
    assert (ROOT / "slurm").resolve() == ROOT / "profiles" / "slurm"


def test_every_key_of_a_profile_is_explained():
    page = (ROOT / "profiles" / "README.md").read_text()
    for name, keys in PROFILES.items():
        if name != "default":
            named = set(keys) - set(PROFILES["default"]) - {"resources"}
            assert [key for key in named if f"`{key}" not in page] == []


@pytest.mark.parametrize("words", [("--profile", "slurm"), ("--profile", "profiles/gpu")])
def test_a_profile_plans_the_same_jobs(filled, words):
    plain = jobs(run(filled, "snakemake", "-n", "iter3_policy").stdout)
    assert jobs(run(filled, "snakemake", "-n", *words, "iter3_policy").stdout) == plain


def test_the_other_ways_to_name_the_profile_ask_the_cluster_as_well(checkout):
    by_option = run(checkout, "snakemake", "-n", "--workflow-profile", "profiles/slurm", "sft")
    by_variable = run(checkout, "env", "SNAKEMAKE_PROFILE=slurm", "snakemake", "-n", "sft")
    for done in (by_option, by_variable):
        assert done.stderr.count("not ready to submit: ") == 1


def test_what_only_looks_at_the_rules_is_not_refused(checkout):
    for option in ("--list-rules", "--rulegraph", "--summary"):
        done = run(checkout, "snakemake", "--profile", "slurm", "sft", option)
        assert done.stdout
        assert "SLURM" not in done.stderr  # which is not asked


def test_steps_wait_for_gpus_where_the_profile_counts_them(filled):
    (filled / "gpu.yaml").write_text("runtime: {device: auto}\nresources: {train_sft: {gpus: 4}}\n")
    done = run(filled, "snakemake", "-n", "--profile", "profiles/gpu", "sft", "--configfile", "gpu.yaml")
    assert "gpu=4" in done.stdout
    asked = run(filled, "snakemake", "-n", "-p", "--profile", "profiles/gpu", "sft", "--configfile", "gpu.yaml").stdout
    assert "scripts.lib.stage.launch --nodes 1 --processes 4 --gpus 4" in asked


# Environments that Snakemake makes. No conda is needed: a stand-in keeps note of what it was asked.

CONDA = """#!{python}
import json, os, pathlib, sys
words = sys.argv[1:]
with open({asked!r}, "a") as log:
    print(json.dumps(words), file=log)
if words[:1] == ["--version"]:
    print("conda 25.1.0")
elif words[:1] == ["info"]:
    print(json.dumps({{"conda_prefix": {prefix!r}, "root_prefix": {prefix!r}, "platform": "linux-64"}}))
elif words[:1] == ["config"]:
    print(json.dumps({{"get": {{"channel_priority": "strict"}}, "channel_priority": "strict"}}))
elif words[:2] == ["env", "create"]:
    made = pathlib.Path(words[words.index("--prefix") + 1]) / "bin"
    made.mkdir(parents=True)
    (made / "python").write_text("#!/bin/sh\\necho \\"$2\\" >> {asked}\\nexec {python} \\"$@\\"\\n")
    (made / "python").chmod(0o755)
    (made.parent / "conda-meta").mkdir()
    (made.parent / "conda-meta" / "history").touch()
"""


@pytest.fixture
def conda(tmp_path):
    """(environment with a stand-in conda on PATH, the file of what it was asked)."""
    import sys

    prefix, asked = tmp_path / "conda", tmp_path / "asked"
    (prefix / "bin").mkdir(parents=True)
    program = prefix / "bin" / "conda"
    program.write_text(CONDA.format(python=sys.executable, prefix=str(prefix), asked=str(asked)))
    activate = prefix / "bin" / "activate"
    activate.write_text('export CONDA_PREFIX="$1" PATH="$1/bin:$PATH"\n')
    for file in (program, activate):
        file.chmod(file.stat().st_mode | stat.S_IEXEC)
    return [f"PATH={prefix / 'bin'}{os.pathsep}{os.environ['PATH']}"], asked


def test_snakemake_makes_the_environment_and_the_stage_runs_in_it(filled, conda):
    environment, asked = conda
    path = environment[0].removeprefix("PATH=")
    words = ["snakemake", "--cores", "1", "--sdm", "conda", "--", "results/tiny/prompts/heldout-1.parquet"]
    venv = run(filled, "bash", "-c", "dirname $(command -v snakemake)").stdout.strip()
    run(filled, "env", f"PATH={path.split(os.pathsep)[0]}:{venv}:{path}", *words)
    created = [json.loads(line) for line in asked.read_text().splitlines() if '"create"' in line]
    assert len(created) == 1
    made = yaml.safe_load(open(created[0][created[0].index("--file") + 1]))  # noqa: PTH123
    assert made["name"] == "ouroboros-train"
    assert (filled / "results" / "tiny" / "prompts" / "heldout-1.json").exists()
    assert asked.read_text().splitlines()[-1] == "scripts.make_prompts"  # told by the environment's own interpreter
    # The same build without conda afterwards, or the other way round: nothing is made again.
    again = run(filled, "snakemake", "-n", "results/tiny/prompts/heldout-1.parquet")
    assert "Nothing to be done" in again.stdout + again.stderr


@pytest.mark.parametrize("name", ["train", "rollout"])
def test_the_environments_for_conda_have_the_pins_of_the_others(name):
    listed = yaml.safe_load((ROOT / "envs" / f"{name}.yaml").read_text())["dependencies"][-1]["pip"]
    lines = (ROOT / "envs" / f"requirements-{name}.txt").read_text().splitlines()
    assert listed == [line for line in lines if line and not line.startswith("#")]


def test_conda_and_ready_interpreters_together_are_refused(tmp_path):
    folder = copy_checkout(tmp_path / "ouroboros")
    site = SITE + INTERPRETERS.replace("train_python: null", "train_python: /opt/train/bin/python")
    (folder / "profiles" / "slurm" / "site.yaml").write_text(site)
    done = run(folder, "snakemake", "-n", "--profile", "slurm", "--sdm", "conda", "--", "sft", check=False)
    assert done.returncode != 0
    assert "train_python = '/opt/train/bin/python': excludes --sdm conda" in done.stdout + done.stderr


def test_a_training_environment_that_is_not_there_is_named_and_only_a_build_is_refused(tmp_path):
    folder = copy_checkout(tmp_path / "ouroboros")
    site = SITE + INTERPRETERS.replace("train_python: null", "train_python: /opt/train/bin/python")
    (folder / "site.yaml").write_text(site)
    words = ["--default-resources", "site=site.yaml", "--", "results/tiny/data/annotations.parquet"]
    lacking = "train_python of the site = '/opt/train/bin/python': no program that can be run. Hint: "
    assert f"not ready for all steps: {lacking}" in run(folder, "snakemake", "-n", *words).stderr
    done = run(folder, "snakemake", *words, check=False)
    assert done.returncode == 1
    assert f"  - {lacking}" in done.stdout + done.stderr
    assert not (folder / "results").exists()


def test_another_pin_is_seen_in_a_dry_run(tmp_path):
    folder = copy_checkout(tmp_path / "ouroboros")
    before = run(folder, "snakemake", "-n", "-p", "sft").stdout
    pins = folder / "envs" / "requirements-train.txt"
    pins.write_text(pins.read_text().replace("trl==", "trl==9."))
    after = run(folder, "snakemake", "-n", "-p", "sft").stdout
    assert "trl==9." in after
    assert "trl==9." not in before
