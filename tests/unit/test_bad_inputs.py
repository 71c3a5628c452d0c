"""What people type wrong, by the hundred: each mistake is one line with its place, what is wrong, and a hint.

The tables say the key, file or word that the line must begin with, and a word that only this mistake calls for.
"""

import gzip
import math
import re
from pathlib import Path

import pytest
from snakemake import cli

from scripts.lib.data import files, sources
from scripts.lib.planning import command_line, config, given, present
from scripts.lib.planning.plan import Plan
from scripts.lib.planning.unused import unused
from scripts.lib.stage.digest import ROOT
from scripts.lib.stage.errors import Complaints, ConfigError, InputError
from tests.conftest import run
from tests.unit import test_config


def one_line(caught) -> str:
    """The only complaint of an error."""
    title, *lines = str(caught.value).split("\n")
    assert re.fullmatch(r"[a-z ]+: 1 error", title), caught.value
    (line,) = lines
    assert re.fullmatch(r"  - \S.*\. Hint: \S.*", line) or ("? Hint: " in line), line
    return line.removeprefix("  - ")


# Configuration files

FILES = {
    "a tab": (b"runs:\n\tmain: {}\n", "line 2", "cannot start any token"),
    "an open brace": (b"runs: {main: {\n", "line 2", "did not find expected"),
    "an open bracket": (b"seed: 3\nruns: [1\n", "line 3", "did not find expected"),
    "an open quote": (b'preset: "mine\nseed: 3\n', "line 3", "unexpected end of stream"),
    "no space after a colon": (b"preset: a\nseed:3\n", "line 3", "could not find expected ':'"),
    "two colons": (b"preset: a: b\n", "line 1", "mapping values are not allowed"),
    "wrong indent": (b"runs:\n    main: {}\n  raft: {}\n", "line 3", "did not find expected key"),
    "an unknown anchor": (b"seed: 1\nsft: *base\n", "line 2", "undefined alias"),
    "a Python object": (b"seed: !!python/object:os.system {}\n", "line 1", "could not determine a constructor"),
    "a Python call": (b"seed: !!python/object/apply:os.getcwd []\n", "line 1", "could not determine a constructor"),
    "two documents": (b"seed: 1\n---\nseed: 2\n", "line 2", "but found another document"),
    "a mapping as a key": (b"{a: 1}: 2\n", "line 1", "unhashable"),
    "a list": (b"- seed\n", None, "is a list"),
    "a word": (b"seed\n", None, "is a str"),
    "a number": (b"3\n", None, "is a int"),
    "nothing": (b"", None, "is empty"),
    "comments only": (b"# seed: 3\n", None, "is empty"),
    "UTF-16 with a mark": ("seed: 3\n".encode("utf-16"), "line 1", "UTF-16"),
    "UTF-16 big-endian": (b"\xfe\xff" + "seed: 3\n".encode("utf-16-be"), "line 1", "UTF-16"),
    "UTF-16 without a mark": ("seed: 3\n".encode("utf-16-le"), "line 1", "'\\x00'"),
    "UTF-32": ("seed: 3\n".encode("utf-32"), "line 1", "UTF-16"),
    "Latin-1": ("seed: 3\n# für\n".encode("latin-1"), "line 2", "no UTF-8"),
    "a picture": (b"\x89PNG\r\n\x1a\n", "line 1", "no UTF-8"),
    "a control character": (b"seed: 3\npreset: a\x07b\n", "line 2", "'\\x07'"),
    "a month 13": (b"preset: 2024-13-01\n", None, "month must be in 1..12"),
    "a key twice": (b"seed: 3\nseed: 4\n", "line 2", "seed stands twice in this block, first in line 1"),
    "a key twice in a block": (b"runs:\n  main: {}\n  raft: {}\n  main: {}\n", "line 4", "main stands twice"),
    "a key twice, deep": (b"runs: {main: {dpo: {beta: 1,\n  epochs: 1, beta: 2}}}\n", "line 2", "beta stands twice"),
    "a key twice in a list": (
        b"runs: {a: {mix: [{weight: 1},\n {weight: 1, weight: 2}]}}\n",
        "line 2",
        "weight stands",
    ),
    "a key twice, quoted": (b"seed: 3\n'seed': 4\n", "line 2", "seed stands twice"),
    "a number and a text as a key": (b"overrides: {2: {}, '2': {}}\n", "line 1", "2 stands twice"),
    "a key twice beside a merge": (b"a: &a {x: 1}\nb: {<<: *a, y: 1, y: 2}\n", "line 2", "y stands twice"),
    "two merges": (b"a: &a {x: 1}\nb: &b {x: 2}\nc:\n  <<: *a\n  <<: *b\n", "line 5", "<< stands twice"),
    "a block that holds itself": (b"runs: &r\n  main: *r\n", None, "holds itself"),
    "a program": (b"__use_yte__: true\nseed: 3\n", None, "no program"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_cannot_be_taken_is_named_with_its_line(tmp_path, name):
    content, line, word = FILES[name]
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    wrong = Complaints()
    given.check([path], {}, wrong)
    (said,) = wrong
    assert said.startswith(f"{path}, {line}: " if line else f"{path}: ")
    assert word in said
    assert ". Hint: " in said
    with pytest.raises(ConfigError, match="config: 1 error"):
        config.load(path)


def test_json_is_yaml_too_and_may_be_indented_by_tabs(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text('{\n\t"seed": 3,\n\t"seed": 4}')
    wrong = Complaints()
    assert given.read(path, wrong) == {"seed": 4}
    assert wrong == [f"{path}, line 3: {wrong[0].split(': ', 1)[1]}"]


def test_a_mark_at_the_beginning_windows_line_ends_and_merges_are_fine(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_bytes("\ufeffseed: 3\r\nsft:\r\n  a: &a {base: x, seed: 1}\r\n  b: {<<: *a, seed: 2}\r\n".encode())
    wrong = Complaints()
    assert given.read(path, wrong)["sft"]["b"] == {"base": "x", "seed": 2}
    assert wrong == []


# Command lines: what stands after `snakemake`, and the complaint. They are checked in a folder with these files:

PLACE = {
    "beta.yaml": "runs: {main: {dpo: {beta: 0.2}}}\n",
    "mine.yaml": "extends: tiny\npreset: mine\n",
    "other.yaml": "preset: other\nruns: {}\n",
    "configs/one.yaml": "seed: 1\n",
    "empty/none.txt": "",
    "site/config.yaml": "configfile: beta.yaml\n",
    "keys/config.yaml": "config: [run=raft]\n",
    "broken.yaml": "runs: {\n",
}
COMMANDS = [
    ("--configfile beta.yaml --configfile mine.yaml", "--configfile: given 2 times", "--configfile a.yaml b.yaml"),
    ("--configfile beta.yaml -n --configfiles=mine.yaml", "--configfile: given 2 times", "only the last"),
    ("--config run=main --config seed=3", "--config: given 2 times", "--config run=main seed=3"),
    ("-C run=main --config seed=3", "--config: given 2 times", "only the last"),
    ("--configfile beta.yaml iter3_policy", "--configfile iter3_policy: no such file", "snakemake iter3_policy …"),
    ("--configfile sft -n", "--configfile sft: no such file", "put it first"),
    ("--configfile tiny beta.yaml", "tiny: no such file", "did you mean "),
    ("--configfile beta.yaml report", "--configfile report: no such file", "put it first"),
    ("--configfile bta.yaml", "bta.yaml: no such file", "did you mean beta.yaml?"),
    ("--configfile config/one.yaml", "config/one.yaml: its folder is not there", "Hint: "),
    ("--configfile preset/llama3_8b.yaml", "preset/llama3_8b.yaml: its folder", "config/presets/llama3_8b.yaml?"),
    ("--configfile llama3_8b.yaml", "llama3_8b.yaml: no such file", "config/presets/llama3_8b.yaml?"),
    ("--configfile ~/mine.yaml", "~/mine.yaml: its folder is not there", "Hint: "),
    ("--configfile configs", "configs: is a folder", "configs/one.yaml"),
    ("--configfile empty", "empty: is a folder", "name a YAML file"),
    ("--configfile .", ".: is a folder", "beta.yaml"),
    ("--configfile broken.yaml", "broken.yaml, line 2: no YAML", "Hint: "),
    ("--configfile other.yaml mine.yaml", "mine.yaml: preset = 'mine': other.yaml begins", "extends: NAME"),
    ("--configfile mine.yaml other.yaml", "other.yaml: preset = 'other': mine.yaml begins from preset", "mixture"),
    ("--configfile mine.yaml --config extends=tiny", "--config: extends = 'tiny': mine.yaml begins", "mixture"),
    ("--config runs.main.dpo.beta=0.2", "--config runs.main.dpo.beta=0.2: takes keys", "{main: {dpo: {beta: 0.2}}}"),
    ("--config runs.main.iterations=5", "--config runs.main.iterations=5: takes", "`runs: {main: {iterations: 5}}`"),
    ("--config seed", "--config seed: must be KEY=VALUE", "Hint: "),
    ("--config run=main iter3_policy", "--config iter3_policy: must be KEY=VALUE", "snakemake iter3_policy …"),
    ("--config =3", "--config =3: '' is no key", "run=main"),
    ("--config 3=seed", "--config 3=seed: '3' is no key", "run=main"),
    ("--config seed=1 seed=2", "--config seed=2: seed is given twice", "say it once"),
    ("--config preset=llama3_8b", "--config preset=llama3_8b: a preset is a file", "presets/llama3_8b.yaml takes"),
    ("--config preset=lama3_8b", "--config preset=lama3_8b: a preset is a file", "presets/llama3_8b.yaml takes"),
    ("--config preset=tiny", "--config preset=tiny: a preset is a file", "config/config.yaml takes"),
    ("--config preset=zzz", "--config preset=zzz: a preset is a file", "--configfile PATH"),
    ("--profile site --configfile mine.yaml", "--configfile: the profile site sets configfile", "'beta.yaml'"),
    ("--profile keys --config run=main", "--config: the profile keys sets config", "run=raft"),
]


@pytest.fixture
def place(tmp_path, monkeypatch):
    for name, content in PLACE.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("typed", "start", "word"), COMMANDS, ids=[typed for typed, _, _ in COMMANDS])
def test_a_command_line_that_would_be_misread_is_refused(place, typed, start, word):
    with pytest.raises(ConfigError) as caught:
        command_line.check(cli, typed.split(" "))
    line = one_line(caught)
    assert line.startswith(start)
    assert word in line


@pytest.mark.parametrize(
    "typed",
    [
        "",
        "-n sft --configfile beta.yaml configs/one.yaml --config run=raft seed=3",
        "--configfile mine.yaml beta.yaml -- iter3_policy --configfile",
        "--config extends=tiny run=",
        "--profile site",
        "--profile keys --configfile beta.yaml",
    ],
)
def test_a_command_line_that_is_right_is_not(place, typed):
    command_line.check(cli, typed.split())


def test_all_mistakes_of_a_command_line_are_told_at_once(place):
    with pytest.raises(ConfigError, match="command line: 5 errors"):
        command_line.check(cli, "--configfile configs broken.yaml sft --config seed run.x=1".split(" "))


@pytest.mark.parametrize(
    ("files", "said", "overlays"),
    [
        ({}, [], "no overlay"),
        ({"a.yaml": "seed: 3\n", "b.yaml": "seed: 4\n"}, [], "overlays a.yaml, b.yaml"),
        ({"a.yaml": "extends: tiny\nseed: 3\n"}, ["run"], "overlays a.yaml, --config run"),
        ({"a.yaml": "seed: 3\n"}, ["extends"], "overlays a.yaml"),
        ({"mine.yaml": "preset: tiny\nextends: tiny\n"}, [], "no overlay"),
    ],
)
def test_a_start_names_every_file_that_lies_over_the_preset(place, files, said, overlays):
    for name, content in files.items():
        (place / name).write_text(content)
    line = given.introduction(PLAN.config, map(Path, files), said)
    assert line == f"preset tiny, {overlays}; run main; results in results/tiny"


# Targets: the steps of the tiny preset

PLAN = Plan(config.load(ROOT / "config" / "config.yaml"))
STAGES = ["rollouts", "rewards", "pairs", "policy", "weights"]
RULES = dict.fromkeys(["all", "sft", "reward", "evaluation", "report", "audit", "verify", "prune"], False)
RULES |= {f"iter{n}_{stage}": False for n in (1, 2, 3) for stage in STAGES} | {"train_dpo": True, "train_sft": True}
TARGETS = [
    ("iter0_policy", "target iter0_policy: run 'main' has iterations 1 to 3", "target sft"),
    ("iter00_pairs", "target iter00_pairs: run 'main' has iterations 1 to 3", "target sft"),
    ("iter01_policy", "target iter01_policy: ", "did you mean iter1_policy?"),
    ("iter4_policy", "target iter4_policy: run 'main' has iterations 1 to 3", "raise runs.main.iterations"),
    ("iter99_rollouts", "target iter99_rollouts: run 'main' has iterations 1 to 3", "no iteration 99"),
    ("iter2_polcy", "target iter2_polcy: ", "did you mean iter2_policy?"),
    ("iter2", "target iter2: ", "did you mean iter2_"),
    ("itr3_policy", "target itr3_policy: ", "did you mean iter3_policy?"),
    ("zzz", "target zzz: ", "snakemake --list-rules names all"),
    ("rewards", "target rewards: ", "did you mean reward?"),
    ("evaluate", "target evaluate: ", "did you mean evaluation?"),
    ("al", "target al: ", "did you mean all?"),
    ("train_dpo", "target train_dpo: is a step that makes many files", "iter1_policy"),
    ("beta.yaml", "target beta.yaml: ", "snakemake all --configfile beta.yaml"),
    ("README.md", "target README.md: no artifact has this path", "Hint: "),
    ("results/tiny/data/annotation.parquet", "target results/tiny/data/annotation.parquet: ", "annotations.parquet?"),
    ("results/tiny/sft/tiny/polcy", "target results/tiny/sft/tiny/polcy: ", "results/tiny/sft/tiny/policy?"),
    ("results/tiny/sft/big/policy", "target results/tiny/sft/big/policy: ", "results/tiny/sft/tiny/policy?"),
    ("results/tiny/runs/main/iter4/policy", "target results/tiny/runs/main/iter4/policy: run 'main'", "Hint: "),
    ("results/tiny/runs/mian/iter1/policy", "target results/tiny/runs/mian/iter1/policy: ", "runs/main/iter1/policy?"),
    ("results/tiny/report.htm", "target results/tiny/report.htm: ", "results/tiny/report.html?"),
    ("results/small/report.html", "target results/small/report.html: ", "results/tiny/report.html?"),
    (
        "results/tiny/prompts/requests.parquet",
        "target results/tiny/prompts/requests.parquet: ",
        "did you mean results/tiny/prompts/requests-",
    ),
    (str(Path("results/tiny/report.html").absolute()), "target /", "did you mean results/tiny/report.html?"),
    ("results/tiny/data/annotations.csv", "target results/tiny/data/annotations.csv: ", "annotations."),
    ("sft -R train_dop", "--forcerun train_dop: ", "did you mean train_dpo?"),
    ("sft --until iter7_policy", "--until iter7_policy: run 'main' has", "no iteration 7"),
    ("sft --no-hooks", "--no-hooks: nobody would be asked", "--config replace=true"),
    ("sft --allowed-rules train_dop", "--allowed-rules train_dop: ", "did you mean train_dpo?"),
    ("sft --set-threads train_dop=3", "--set-threads train_dop: ", "did you mean train_dpo?"),
    ("sft --set-resources trainsft:mem_mb=3", "--set-resources trainsft: ", "did you mean train_sft?"),
    ("sft --omit-from trainsft", "--omit-from trainsft: ", "did you mean train_sft?"),
]


@pytest.mark.parametrize(("typed", "start", "word"), TARGETS, ids=[typed for typed, _, _ in TARGETS])
def test_a_target_that_nothing_makes_is_refused_with_the_nearest(typed, start, word):
    with pytest.raises(ConfigError) as caught:
        command_line.check_targets(cli, typed.split(" "), PLAN, RULES)
    line = one_line(caught)
    assert line.startswith(start)
    assert word in line


def test_hooks_that_a_profile_leaves_out_are_refused_too(tmp_path):
    (tmp_path / "config.yaml").write_text("no-hooks: true\n")
    with pytest.raises(ConfigError, match="--no-hooks: nobody would be asked"):
        command_line.check_targets(cli, ["sft", "--profile", str(tmp_path)], PLAN, RULES)


def test_targets_that_are_known_are_not_refused():
    files = [path for each in PLAN.artifacts(*PLAN.asked("all")) for path in command_line.files_of(each)]
    command_line.check_targets(cli, [*files, "./results/tiny/report.html", "iter3_policy", "all"], PLAN, RULES)
    command_line.check_targets(cli, ["sft", "-R", "train_dpo", "results/tiny/report.html"], PLAN, RULES)


@pytest.mark.parametrize(
    "typed", ["./results/tiny/report.html", "results/tiny/../tiny/report.json", "results//tiny/report.html"]
)
def test_a_path_is_looked_up_as_snakemake_takes_it(typed):
    wanted = command_line.artifacts(cli, ["results/tiny/report.html"], PLAN)
    assert wanted
    assert command_line.artifacts(cli, [typed], PLAN) == wanted


# Configurations: a change to that of test_config.py, the key that is blamed, and a word of what is wrong

ENTRIES = {
    "bases": "small",
    "datasets": "talks",
    "prompts": "asks",
    "sft": "first",
    "rewards": "bt",
    "samplings": "eight",
    "pairings": "extremes",
    "runs": "main",
    "evaluation": "test",
}
WITH_KINDS = ["bases", "datasets", "prompts", "sft", "rewards"]
NUMBERS = [
    "sft.first.learning_rate",
    "rewards.bt.weight_decay",
    "runs.main.dpo.beta",
    "runs.raft.raft.adam_beta2",
    "pairings.extremes.minimum_margin",
    "evaluation.test.confidence",
    "samplings.eight.top_p",
    "runtime.checkpoint_minutes",
    "forecast.prompt_tokens",
    "bases.small.initializer_range",
]
COUNTS = [
    "seed",
    "samplings.eight.k",
    "runs.main.iterations",
    "prompts.asks.size",
    "runtime.score_tokens",
    "bases.small.layers",
    "resources.train_dpo.gpus",
]
FILES_OF = {"kind": "files", "type": "conversations", "path": "data"}


def by_kind():
    """The same mistake in every block, and in every kind of number."""
    for block in [*ENTRIES, "runtime", "resources", "forecast"]:
        for value in (3, []):
            yield block, value, block, "must be object"
    for block, name in ENTRIES.items():
        key = f"{block}.{name}"
        yield key, "x", key, "must be object"
        yield key, None, key, "is null, must be object"
        yield f"{key}.zzz", 1, f"{key}.zzz", "unknown key. Hint: known are"
        yield f"{block}.Big-One", {}, f"{block}.Big-One", "names become folder names"
        yield f"{block}.{{a}}", {}, f"{block}.{{a}}", "use a-z, 0-9 and _ only"
        if block in WITH_KINDS:
            yield f"{key}.kind", "wrold", f"{key}.kind", "must be one of"
            yield f"{key}.kind", None, f"{key}.kind", "must be one of"
    for key in [*NUMBERS, *COUNTS]:
        yield key, math.nan, key, "must be finite"
        yield key, math.inf, key, "must be finite"
        yield key, "2e-4x", key, "a number such as"
        yield key, -1, key, "must be"
        yield key, True, key, "must be"


CONFIGS = [
    *by_kind(),
    ("seed", 2**32, "seed", "must be at most 4294967295"),
    ("sft.first.seed", 2**32, "sft.first.seed", "must be at most 4294967295"),
    ("runs.main.overrides.2.dpo.seed", 2**64, "runs.main.overrides.2.dpo.seed", "must be at most 4294967295"),
    ("preset", None, "preset", "is null, must be string"),
    ("preset", "My preset", "preset", "must match"),
    ("preset", "{a}", "preset", "must match"),
    ("preset", 2024, "preset", "must be string"),
    ("results", "~/results", "results", "neither ~ nor $NAME is expanded"),
    ("results", "$SCRATCH/results", "results", "neither ~ nor $NAME is expanded"),
    ("results", "results/{run}", "results", "braces would be wildcards"),
    ("results", ".", "results", "a folder of their own"),
    ("results", "a\nb", "results", "line breaks"),
    ("results", "-r", "results", "take it for an option"),
    ("results", "./-r/tiny", "results", "take it for an option"),
    ("results", ["a"], "results", "must be string or null"),
    ("runtime.rollout_python", "~/vllm/bin/python", "runtime.rollout_python", "neither ~ nor $NAME is expanded"),
    ("datasets.talks", {**FILES_OF, "path": "~/hh"}, "datasets.talks.path", "neither ~ nor $NAME is expanded"),
    ("datasets.talks", {**FILES_OF, "path": "$HOME/hh"}, "datasets.talks.path", "neither ~ nor $NAME is expanded"),
    ("datasets.talks", {**FILES_OF, "path": ""}, "datasets.talks.path", "must be a path"),
    ("datasets.talks", {**FILES_OF, "pattern": "/data/*"}, "datasets.talks.pattern", "inside the folder"),
    ("datasets.talks", {**FILES_OF, "pattern": "../*"}, "datasets.talks.pattern", "inside the folder"),
    ("datasets.talks", {**FILES_OF, "pattern": ""}, "datasets.talks.pattern", "inside the folder"),
    ("datasets.talks", {**FILES_OF, "pattern": "a**b"}, "datasets.talks.pattern", "inside the folder"),
    ("datasets.talks", {**FILES_OF, "part": [0.5]}, "datasets.talks.part", "at least 2 entries"),
    ("datasets.talks", {**FILES_OF, "part": [0.5, 0.1]}, "datasets.talks.part", "below the second"),
    ("datasets.talks", {**FILES_OF, "part": 0.5}, "datasets.talks.part", "write [0.5]"),
    ("datasets.talks", {**FILES_OF, "part": [0, 2]}, "datasets.talks.part[1]", "must be at most 1"),
    ("datasets.talks.path", "data", "datasets.talks.path", "path is a key of"),
    ("bases.small", {"kind": "folder", "path": "$MODELS/a"}, "bases.small.path", "neither ~ nor $NAME is expanded"),
    ("bases.small", {"kind": "gguf", "package": "a-b", "file": "c"}, "bases.small.package", "must match"),
    ("bases.small", {"kind": "gguf", "file": "c"}, "bases.small.package", "missing"),
    ("iterations", 5, "iterations", "iterations is a key of runs.NAME"),
    ("beta", 5, "beta", "beta is a key of runs.NAME.dpo"),
    ("runs.main.beta", 5, "runs.main.beta", "beta is a key of runs.NAME.dpo"),
    ("runs.main.dpo.iterations", 5, "runs.main.dpo.iterations", "iterations is a key of runs.NAME"),
    ("max_new_tokens", 5, "max_new_tokens", "max_new_tokens is a key of samplings.NAME"),
    ("runs.main.dpo.betta", 5, "runs.main.dpo.betta", "did you mean beta?"),
    ("evaluations", {}, "evaluations", "did you mean evaluation?"),
    ("runs.main.dpo.loss", "sigmoid", "runs.main.dpo.loss", "write [sigmoid]"),
    ("runs.main.dpo.loss", ["sigmiod"], "runs.main.dpo.loss[0]", "did you mean sigmoid?"),
    ("runs.main.dpo.loss", [], "runs.main.dpo.loss", "at least 1 entries"),
    ("runs.main.dpo.lora", {"targets": []}, "runs.main.dpo.lora.targets", "at least 1 entries"),
    ("runs.main.dpo", None, "runs.main.dpo", "is null, must be object"),
    ("runs.main.overrides", {"x": {}}, "runs.main.overrides.x", "the name must match"),
    ("runs.main.overrides", {4: {}}, "runs.main.overrides.4", "iterations 1 to 3"),
    ("runs.main.keep", [4], "runs.main.keep[0]", "iterations 1 to 3"),
    ("runs.main.mix", {"dataset": "choices"}, "runs.main.mix", "must be array"),
    ("runs.main.iterations", 30_001, "runs.main.iterations", "the world has 30000 prompts"),
    ("runs", {}, "runs", "is empty"),
    ("run", "mian", "run", "did you mean main?"),
    ("run", 3, "run", "must be string or null"),
    ("extends", "lama3_8b", "extends", "did you mean llama3_8b"),
    ("extends", ["tiny"], "extends", "no such preset"),
    ("dtype", "float16", "dtype", "must be one of float32, bfloat16"),
    ("sft.first.base", "smal", "sft.first.base", "did you mean small?"),
    ("sft.first.dataset", "talk", "sft.first.dataset", "did you mean talks?"),
    ("rewards.bt.init", "sft/frist", "rewards.bt.init", "did you mean first?"),
    ("runs.main.prompts", "ask", "runs.main.prompts", "did you mean asks?"),
    ("runs.main.reward", "btt", "runs.main.reward", "did you mean bt?"),
    ("runs.main.sampling", "eigth", "runs.main.sampling", "did you mean eight?"),
    ("runs.main.pairing", "extreme", "runs.main.pairing", "did you mean extremes?"),
    ("evaluation.test.rewards", ["golden"], "evaluation.test.rewards", "did you mean gold?"),
    ("evaluation.test.rewards", "gold", "evaluation.test.rewards", "write [gold]"),
    ("samplings.eight.engine", "vlm", "samplings.eight.engine", "did you mean vllm?"),
    ("samplings.eight.temperatures", 1.0, "samplings.eight.temperatures", "write [1.0]"),
    ("samplings.eight.record_logprobs", "yes", "samplings.eight.record_logprobs", "true or false"),
    ("resources.train_dop", {}, "resources.train_dop", "did you mean train_dpo?"),
    ("sft.first.max_length", 129, "sft.first.max_length", "is made for 128"),
    ("rewards.bt.max_length", 4096, "rewards.bt.max_length", "is made for 128"),
    ("runs.offline.dpo.max_length", 129, "runs.offline.dpo.max_length", "is made for 128"),
]  # fmt: skip


def changed(key, value):
    """The configuration of test_config.py with one more key."""
    return test_config.given(**{key.replace(".", "__"): value})


@pytest.mark.parametrize(
    ("change", "value", "key", "word"), CONFIGS, ids=[f"{change} = {value!r}" for change, value, *_ in CONFIGS]
)
def test_a_wrong_configuration_is_one_line_with_its_key(change, value, key, word):
    line = test_config.complaint(changed(change, value))
    assert line.startswith((f"{key} = ", f"{key}: "))
    assert word in line
    assert "Hint: " in line


def test_a_preset_of_its_own_without_runs_is_told_how_to_extend():
    line = test_config.complaint({"preset": "mine", "seed": 3})
    assert line.startswith("preset = 'mine': begins a configuration of its own, which has no `runs`. Hint: ")
    assert "write `extends: tiny`" in line
    assert test_config.resolve({"preset": "mine", "extends": "tiny"}).results == "results/mine"


def test_there_are_three_hundred_bad_inputs_here():
    assert len(CONFIGS) + len(FILES) + len(COMMANDS) + len(TARGETS) + len(UNUSED) + len(DATA) + len(SOURCES) > 300


# Data: files that are not what their names say, and sources that are not there

DATA = {
    "no known ending": ("rows.csv", b"a,b\n", "must end in one of .jsonl, .json, .parquet"),
    "no ending": ("rows", b"{}\n", "must end in one of"),
    "a zip": ("rows.jsonl.zip", b"PK", "must end in one of"),
    "gzip cut short": ("rows.jsonl.gz", gzip.compress(b"{}" * 999)[:20], "damaged or cut short"),
    "gzip of nothing": ("rows.jsonl.gz", b"\x1f\x8b", "damaged or cut short"),
    "no parquet": ("rows.parquet", b"{}\n", "damaged or no parquet"),
    "parquet cut short": ("rows.parquet", b"PAR1" + bytes(20), "damaged or no parquet"),
    "an array cut short": ("rows.json", b'[{"prompt": "a"}, ', "no JSON array"),
}


@pytest.mark.parametrize("name", DATA)
def test_a_data_file_that_cannot_be_read_is_named_with_a_hint(tmp_path, name):
    file, content, word = DATA[name]
    (tmp_path / file).write_bytes(content)
    with pytest.raises(InputError) as caught:
        list(files.rows(tmp_path / file))
    assert str(caught.value).startswith(f"{tmp_path / file}: ")
    assert "\nHint: " in str(caught.value)
    assert word in str(caught.value)


SOURCES = {
    "helpful-bse": ("no such file or folder", "did you mean helpful-base?"),
    "zzz": ("no such file or folder", "put the data there"),
    "empty": ("the folder is empty", "put the data there"),
    "helpful-base": ("no file there matches '*.jsonl'; it has train/rows.jsonl.gz", "set `pattern`"),
}


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_that_is_not_there_says_what_is(tmp_path, name):
    (tmp_path / "helpful-base" / "train").mkdir(parents=True)
    (tmp_path / "helpful-base" / "train" / "rows.jsonl.gz").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError) as caught:
        sources.files(str(tmp_path / name), "*.jsonl", "datasets.mine.path")
    text, hint = SOURCES[name]
    assert str(caught.value).startswith(f"datasets.mine.path = {str(tmp_path / name)!r}: {text}. Hint: {hint}")


def test_all_sources_and_packages_that_are_missing_are_told_at_once(tmp_path):
    talks = {"kind": "files", "type": "conversations", "path": str(tmp_path / "talks")}
    asks = {"kind": "files", "path": str(tmp_path / "asks"), "size": 9}
    base = {"kind": "gguf", "package": "no_such_package", "file": "a.gguf"}
    plan = Plan(test_config.resolve(test_config.given(datasets__talks=talks, prompts__asks=asks, bases__small=base)))
    everything = plan.artifacts(*plan.asked("all"))
    with pytest.raises(ConfigError, match="not there: 3 errors") as caught:
        present.check(plan, everything)
    keys = [line.split(" = ")[0] for line in str(caught.value).splitlines()[1:]]
    assert keys == ["  - datasets.talks.path", "  - prompts.asks.path", "  - bases.small.package"]
    # A package alone does not keep from planning; a source that no target takes is not looked for.
    present.check(plan, [path for path in everything if plan.maker(path)[0] == "convert_base"])
    present.check(plan, plan.artifacts(plan.dataset("choices")))


# What decides nothing is warned of

UNUSED = {
    "samplings: {best_of8: {k: 4, max_new_tokens: 32}}": ("samplings.best_of8: nothing", "did you mean best_of_8?"),
    "pairings: {best_wrst: {}}": ("pairings.best_wrst: nothing uses it", "did you mean best_worst?"),
    "pairings: {zzz: {}}": ("pairings.zzz: nothing uses it", "name it somewhere"),
    "bases: {big: {kind: world}}": ("bases.big: nothing uses it", "Hint: "),
    "datasets: {demonstration: {kind: world, type: conversations, split: sft, size: 9}}": (
        "datasets.demonstration: nothing uses it",
        "did you mean demonstrations?",
    ),
    "prompts: {request: {kind: world, split: iteration, size: 9}}": ("prompts.request: ", "did you mean requests?"),
    "sft: {spare: {kind: adopt, base: world}}": ("sft.spare: nothing uses it", "Hint: "),
    "rewards: {golden: {kind: verifier, verifier: world_gold}}": ("rewards.golden: ", "did you mean gold?"),
    "runs: {main: {raft: {seed: 3}}}": ("runs.main.raft: decides nothing", "method is dpo"),
    "runs: {main: {each: {2: {raft: {seed: 3}}}}}": ("runs.main.overrides.2.raft: decides nothing", "method is dpo"),
    "runs: {raft: {pairing: best_worst}}": ("runs.raft.pairing: decides nothing", "method is raft"),
    "runs: {raft: {dpo: {beta: 1}}}": ("runs.raft.dpo: decides nothing", "method is raft"),
    "runs: {raft: {reference: previous}}": ("runs.raft.reference: decides nothing", "method is raft"),
    "runs: {raft: {mix: [{dataset: annotations, pairing: as_given}]}}": ("runs.raft.mix: decides", "method is raft"),
    "runs: {offline: {sampling: best_of_8}}": ("runs.offline.sampling: decides nothing", "no prompts to sample on"),
    "runs: {offline: {train_on: all}}": ("runs.offline.train_on: decides nothing", "no prompts to sample on"),
    "pairings: {best_worst: {chosen_quantile: 0.9}}": ("pairings.best_worst.chosen_quantile: ", "strategy is max_min"),
}


def warnings(path):
    return unused(config.load(path), config.own([path], {}))


@pytest.mark.parametrize("overlay", UNUSED)
def test_what_decides_nothing_is_warned_of(tmp_path, overlay):
    path = tmp_path / "mine.yaml"
    path.write_text(overlay)
    (line,) = warnings(path)
    start, word = UNUSED[overlay]
    assert line.startswith(start)
    assert word in line
    assert ". Hint: " in line


@pytest.mark.parametrize(
    "overlay",
    [
        "runs: {main: {method: raft, raft: {max_length: 128, batch_size: 32}}}",  # dpo is the preset's
        "runs: {main: {sampling: evaluation}, raft: {sampling: evaluation}}",
        "samplings: {mine: {max_new_tokens: 9, max_prompt_tokens: 9}}\nruns: {main: {each: {2: {sampling: mine}}}}",
        "pairings: {best_worst: {strategy: quantile, chosen_quantile: 0.9}}",
        "runs: {raft: {mix: []}}",
    ],
)
def test_what_is_used_is_not(tmp_path, overlay):
    path = tmp_path / "mine.yaml"
    path.write_text(overlay)
    assert warnings(path) == []


@pytest.mark.parametrize("name", given.presets())
def test_every_shipped_preset_uses_all_that_it_says(name):
    path = given.presets()[name]
    assert unused(config.load(path), given.read(path, Complaints())) == []


# What the person at the terminal sees


def test_snakemake_refuses_bad_files_before_it_reads_them(checkout, tmp_path):
    (tmp_path / "twice.yaml").write_text("seed: 3\nseed: 4\n")
    (tmp_path / "utf16.yaml").write_bytes("seed: 3\n".encode("utf-16"))
    (tmp_path / "broken.yaml").write_text("runs: {\n")
    files = [str(tmp_path / name) for name in ("twice.yaml", "utf16.yaml", "broken.yaml", "none.yaml")]
    done = run(checkout, "snakemake", "-n", "--configfile", *files, str(tmp_path), "iter3_policy", check=False)
    title, *lines = done.stderr.strip().splitlines()[-7:]
    assert (done.returncode, title) == (1, "command line: 6 errors")
    places = ["twice.yaml, line 2", "utf16.yaml, line 1", "broken.yaml, line 2", "none.yaml", ""]
    said = [line.split(": ")[0] for line in lines]
    assert said == ["  - --configfile iter3_policy", *(f"  - {tmp_path / name}" for name in places)]
    assert "Traceback" not in done.stdout + done.stderr


def test_snakemake_refuses_unknown_targets_and_missing_sources_and_says_what_it_is_about(checkout, tmp_path):
    overlay = tmp_path / "hh.yaml"
    overlay.write_text("samplings: {best_of4: {}}\n")
    given_files = ("--configfile", "config/presets/smollm2_135m_cpu.yaml", str(overlay))
    done = run(checkout, "snakemake", "-n", "iter7_policy", *given_files, check=False)
    assert (
        f"preset smollm2_135m_cpu, overlays {overlay}; run main; results in results/smollm2_135m_cpu\n" in done.stderr
    )
    assert "\nsamplings.best_of4: nothing uses it. Hint: did you mean best_of_4?\n" in done.stderr
    assert "  - target iter7_policy: run 'main' has iterations 1 to 3; there is no iteration 7. Hint: " in done.stdout
    done = run(checkout, "snakemake", "-n", "iter3_policy", *given_files, check=False)
    keys = re.findall(r"^  - (\S+) = 'data/hh_rlhf': no such file or folder\. Hint: ", done.stdout, flags=re.MULTILINE)
    names = ["datasets.annotations", "datasets.annotations_heldout", "datasets.demonstrations", "prompts.hh"]
    assert sorted(keys) == [f"{name}.path" for name in names]
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
