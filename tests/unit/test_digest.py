"""Code digests: what changes them, and what does not. The plumbing, which is in none, has a digest of its own."""

import re
import shutil

import pytest

from scripts.lib.kinds import families
from scripts.lib.stage import digest

STAGE = '''"""Trains."""

from scripts.lib import helper

RATE = 0.5  # half


def run(job):
    """Do it."""
    return helper.double(job) * RATE
'''
HELPER = '''"""Helps."""


def double(x):
    return 2 * x
'''
# Settings of each stage that chooses members of families.
CHOICES = {
    "sample_rollouts": {"engine": "transformers"},
    "score_rollouts": {"labeller": "bt"},
    "verify_rollouts": {"verifier": "world_gold"},
    "evaluate": {"benchmark": "rewards"},
}


def clear():
    digest._module.cache_clear()
    digest._code_digest.cache_clear()
    digest.pins.cache_clear()


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A small repository: scripts/a.py imports lib/helper.py, scripts/b.py imports nothing."""
    lib = tmp_path / "scripts" / "lib"
    lib.mkdir(parents=True)
    (tmp_path / "envs").mkdir()
    (tmp_path / digest.PINS).write_text("# pinned\ntorch==2.13.0\npolars==2.1.0\n")
    (tmp_path / "scripts" / "__init__.py").write_text("")
    (lib / "__init__.py").write_text("")
    (lib / "helper.py").write_text(HELPER)
    (tmp_path / "scripts" / "a.py").write_text(STAGE)
    (tmp_path / "scripts" / "b.py").write_text("ANSWER = 42\n")
    monkeypatch.setattr(digest, "ROOT", tmp_path)
    clear()
    yield tmp_path / "scripts"
    clear()


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A copy of this repository's scripts, and the names of its stages."""
    shutil.copytree(digest.ROOT / "scripts", tmp_path / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "envs").mkdir()
    for file in (digest.PINS, *digest.MEMBER_PINS.values()):
        shutil.copy(digest.ROOT / file, tmp_path / file)
    monkeypatch.setattr(digest, "ROOT", tmp_path)
    clear()
    stages = sorted(path.stem for path in (tmp_path / "scripts").glob("*.py") if path.stem != "__init__")
    yield tmp_path / "scripts", stages
    clear()


def of(stage):
    return of_all([stage])[stage]


def of_all(stages):
    clear()
    return {stage: digest.code_digest(stage, CHOICES.get(stage)) for stage in stages}


def names(code):
    """The modules that a digest names."""
    return [entry.split(":")[0] for entry in code.split() if ":" in entry and not entry.startswith("format:")]


def change(*paths):
    for path in paths:
        with path.open("a") as file:
            file.write("\nCHANGED = 1\n")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param("RATE = 0.5  # half", "RATE = 0.5", id="comment removed"),
        pytest.param("RATE = 0.5", "# a new line\nRATE = 0.5", id="comment added"),
        pytest.param('"""Trains."""', '"""Trains a policy."""', id="module docstring"),
        pytest.param('    """Do it."""\n', "", id="function docstring removed"),
        pytest.param("* RATE", "*RATE", id="spaces"),
        pytest.param("RATE = 0.5  # half", "\n\nRATE = (\n    0.5\n)", id="lines and parentheses"),
        pytest.param("RATE = 0.5", "RATE = 0.50", id="spelling of a number"),
    ],
)
def test_what_does_not_change_the_meaning_leaves_the_digest(tree, before, after):
    old = of("a")
    assert before in STAGE
    (tree / "a.py").write_text(STAGE.replace(before, after))
    assert of("a") == old


def test_quote_style_and_string_prefix_leave_the_digest(tree):
    (tree / "b.py").write_text('NAME = "x"\n')
    old = of("b")
    for text in ("NAME = 'x'\n", "NAME = '''x'''\n", "NAME = u'x'\n", "NAME = r'x'\n"):
        (tree / "b.py").write_text(text)
        assert of("b") == old


def test_class_and_async_docstrings_leave_the_digest(tree):
    (tree / "b.py").write_text("class C:\n    X = 1\n\n\nasync def f():\n    return 1\n")
    old = of("b")
    (tree / "b.py").write_text('class C:\n    """C."""\n    X = 1\n\n\nasync def f():\n    """F."""\n    return 1\n')
    assert of("b") == old


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param("RATE = 0.5", "RATE = 0.25", id="constant"),
        pytest.param("RATE = 0.5", "RATE = 1", id="kind of a number"),
        pytest.param("RATE = 0.5", "RATE = 0.5\nMORE = 1", id="statement added"),
        pytest.param("* RATE", "+ RATE", id="operator"),
        pytest.param("helper.double(job) * RATE", "RATE * helper.double(job)", id="order"),
        pytest.param("run(job)", "run(job=None)", id="default argument"),
    ],
)
def test_what_may_change_the_result_changes_the_digest(tree, before, after):
    old = of("a")
    assert before in STAGE
    (tree / "a.py").write_text(STAGE.replace(before, after))
    assert of("a") != old


@pytest.mark.parametrize(("one", "other"), [("X = 1", "X = 1.0"), ("X = 1", "X = True"), ("X = 'a'", "X = b'a'")])
def test_equal_looking_constants_of_different_types_differ(tree, one, other):
    (tree / "b.py").write_text(one)
    old = of("b")
    (tree / "b.py").write_text(other)
    assert of("b") != old


def test_a_helper_changes_its_importers_and_no_other_stage(tree):
    a, b = of("a"), of("b")
    (tree / "lib" / "helper.py").write_text(HELPER.replace("2 * x", "3 * x"))
    assert of("a") != a
    assert of("b") == b


def test_a_helper_of_a_helper_counts(tree):
    (tree / "lib" / "helper.py").write_text("from scripts.lib import deep\n" + HELPER)
    (tree / "lib" / "deep.py").write_text("X = 1\n")
    old = of("a")
    (tree / "lib" / "deep.py").write_text("X = 2\n")
    assert of("a") != old
    assert names(of("a")) == ["a", "deep", "helper"]


@pytest.mark.parametrize(
    "line",
    [
        "import scripts.lib.helper",
        "import scripts.lib.helper as h",
        "from scripts.lib import helper",
        "from scripts.lib.helper import double",
    ],
)
def test_every_form_of_import_counts_also_inside_functions(tree, line):
    for text in (f"{line}\n", f"def run(job):\n    {line}\n", f"if True:\n    {line}\n"):
        (tree / "b.py").write_text(text)
        assert names(of("b")) == ["b", "helper"]


def test_modules_that_import_each_other_end(tree):
    (tree / "lib" / "helper.py").write_text("from scripts.lib import other\n")
    (tree / "lib" / "other.py").write_text("from scripts.lib import helper\n")
    assert names(of("a")) == ["a", "helper", "other"]


def test_imports_of_libraries_are_not_followed(tree):
    (tree / "b.py").write_text("import json\nfrom pathlib import Path\nimport polars\n")
    assert names(of("b")) == ["b"]


def test_the_pin_of_a_deciding_package_stands_beside_the_modules_of_those_that_import_it(tree):
    (tree / "lib" / "helper.py").write_text("def f():\n    from torch import nn\n    import trl\n")
    assert re.fullmatch(r"a:[0-9a-f]{10} helper:[0-9a-f]{10} format:1 torch==2\.13\.0", of("a"))
    assert "torch" not in of("b")


def test_another_pinned_version_changes_the_digest_of_those_that_import_it_only(tree):
    (tree / "b.py").write_text("import torch\n")
    old = of("a"), of("b")
    (digest.ROOT / digest.PINS).write_text("torch==2.14.0\npolars==3.0.0\n")
    assert of("a") == old[0]
    assert of("b") == old[1].replace("2.13.0", "2.14.0")


def test_a_digest_names_each_module_with_ten_hex_digits_stage_first(tree):
    assert re.fullmatch(r"a:[0-9a-f]{10} helper:[0-9a-f]{10} format:1", of("a"))


def test_an_unknown_stage_is_refused_by_name(tree):
    with pytest.raises(ValueError, match=r"no module scripts\.nothing"):
        of("nothing")


def test_modules_are_named_by_their_room_and_stages_alone(project):
    _, stages = project
    assert {"data.tables", "models.chat", "models.training"} < set(names(of("train_dpo")))
    assert all(names(code)[0] == stage for stage, code in of_all(stages).items())


def test_a_changed_project_helper_changes_exactly_the_stages_that_name_it(project):
    scripts, stages = project
    old = of_all(stages)
    change(scripts / "lib" / "data" / "seeds.py")
    now = of_all(stages)
    changed = {stage for stage in stages if now[stage] != old[stage]}
    assert changed == {stage for stage in stages if "data.seeds" in names(old[stage])}
    assert {"sample_rollouts", "train_dpo"} <= changed
    assert "evaluate" not in changed


def test_a_changed_project_stage_changes_no_other_stage(project):
    scripts, stages = project
    old = of_all(stages)
    change(scripts / "evaluate.py")
    now = of_all(stages)
    assert {stage for stage in stages if now[stage] != old[stage]} == {"evaluate"}


def test_no_module_imports_relatively_which_the_digest_would_not_see():
    for path in sorted((digest.ROOT / "scripts").rglob("*.py")):
        assert not re.search(r"^\s*from\s+\.", path.read_text(), re.MULTILINE), path


def test_file_and_text_digests_are_sha256(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert digest.file_sha256(tmp_path / "x") == known
    assert digest.text_sha256("abc") == known


# Rooms that no digest covers


@pytest.mark.parametrize("room", ["stage", "planning", "kinds"])
def test_a_change_of_plumbing_planning_or_kinds_changes_no_digest(project, room):
    scripts, stages = project
    old = of_all(stages)
    modules = sorted((scripts / "lib" / room).rglob("*.py"))
    assert modules
    change(*modules)
    assert of_all(stages) == old
    assert not [name for code in old.values() for name in names(code) if name == room or name.startswith(f"{room}.")]


def test_a_raised_format_changes_every_digest_and_nothing_else_in_it(project, monkeypatch):
    _, stages = project
    old = of_all(stages)
    monkeypatch.setattr(digest, "FORMAT", digest.FORMAT + 1)
    assert of_all(stages) == {
        stage: code.replace(f" format:{digest.FORMAT - 1}", f" format:{digest.FORMAT}") for stage, code in old.items()
    }
    assert all(f" format:{digest.FORMAT - 1}" in code for code in old.values())


# Families


@pytest.mark.parametrize("key", sorted(families.CHOSEN_BY))
def test_of_a_family_the_member_that_the_settings_choose_counts_and_no_other(tree, key):
    folder = tree / "lib" / families.FOLDERS[families.CHOSEN_BY[key]]
    folder.mkdir(parents=True)
    for name in ("one", "other"):
        (folder / f"{name}.py").write_text("from scripts.lib import helper\n")
    (tree / "c.py").write_text("from scripts.lib.stage import families\n")

    def digests():
        clear()
        return [digest.code_digest("c", settings) for settings in ({key: "one"}, {key: "other"}, {key: None}, {})]

    one, other, without, nothing = digests()
    member = f"{families.FOLDERS[families.CHOSEN_BY[key]]}/one".replace("/", ".")
    assert names(one) == ["c", *sorted(["helper", member])]
    assert names(without) == names(nothing) == ["c"]
    (folder / "new.py").write_text("X = 1\n")
    assert digests() == [one, other, without, nothing]
    change(folder / "other.py")
    assert digests()[0] == one and digests()[1] != other
    assert digests()[2:] == [without, nothing]
    change(folder / "one.py")
    assert digests()[0] != one


def test_a_setting_of_another_name_chooses_nothing(tree):
    assert digest.code_digest("a", {"kind": "vllm", "loss": ["sigmoid"], "verifiers": "bt"}) == of("a")


def test_a_member_that_is_not_there_is_refused_by_name(tree):
    with pytest.raises(ValueError, match=r"no module scripts\.lib\.labels\.nothing"):
        digest.code_digest("a", {"verifier": "nothing"})


@pytest.mark.parametrize("family", sorted(families.FOLDERS))
def test_a_changed_member_of_the_project_changes_the_stages_whose_settings_choose_it(project, family):
    scripts, stages = project
    old, folder = of_all(stages), scripts / "lib" / families.FOLDERS[family]
    (folder / "a_new_one.py").write_text("X = 1\n")
    assert of_all(stages) == old
    for name in families.names(family):
        change(folder / f"{name}.py")
        now = of_all(stages)
        changed = {stage for stage in stages if now[stage] != old[stage]}
        chosen = {s for s, settings in CHOICES.items() if f"{family}/{name}" in families.chosen(settings)}
        assert changed == chosen
        old = now


def test_a_member_with_an_environment_of_its_own_is_pinned_by_that(tree):
    engines = tree / "lib" / "models" / "engines"
    engines.mkdir(parents=True)
    (tree / "a.py").write_text("def run():\n    import torch\n")
    (engines / "transformers.py").write_text("import transformers\n")
    (engines / "vllm.py").write_text("import vllm\n")
    (digest.ROOT / digest.PINS).write_text("torch==2.13.0\ntransformers==5.23.0\n")
    (digest.ROOT / digest.MEMBER_PINS["engines/vllm"]).write_text("vllm==0.32.0\ntorch==2.12.0\n")
    clear()
    plain, vllm = (digest.code_digest("a", {"engine": name}) for name in ("transformers", "vllm"))
    assert plain.endswith(" torch==2.13.0 transformers==5.23.0") and "engines.vllm" not in plain
    assert vllm.endswith(" torch==2.12.0 vllm==0.32.0") and "engines.transformers" not in vllm


# The plumbing's own digest


@pytest.mark.parametrize("room", ["stage", "kinds"])
def test_the_plumbing_has_a_digest_that_changes_with_its_code_and_not_with_its_comments(project, room):
    scripts, _ = project
    old = digest.plumbing_digest()
    assert re.fullmatch(r"[0-9a-f]{16}", old)
    module = scripts / "lib" / room / "another.py"
    module.write_text('"""A docstring."""\n\nX = 1\n')
    new = digest.plumbing_digest()
    assert new != old
    module.write_text("# A comment.\nX = 1\n")
    assert digest.plumbing_digest() == new
    module.write_text("X = 2\n")
    assert digest.plumbing_digest() not in (old, new)


def test_what_code_digests_cover_and_planning_are_no_part_of_the_plumbings_digest(project):
    scripts, _ = project
    old = digest.plumbing_digest()
    rooms = [path.name for path in (scripts / "lib").iterdir() if path.is_dir() and path.name not in digest.PLUMBING]
    assert {"data", "models", "planning"} <= set(rooms)
    change(*(file for room in rooms for file in (scripts / "lib" / room).rglob("*.py")), scripts / "train_dpo.py")
    assert digest.plumbing_digest() == old
