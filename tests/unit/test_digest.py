"""Code digests: what changes them, and what does not."""

import re
import shutil

import pytest

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
    shutil.copy(digest.ROOT / digest.PINS, tmp_path / digest.PINS)
    monkeypatch.setattr(digest, "ROOT", tmp_path)
    clear()
    stages = sorted(path.stem for path in (tmp_path / "scripts").glob("*.py") if path.stem != "__init__")
    yield tmp_path / "scripts", stages
    clear()


def of(stage):
    return of_all([stage])[stage]


def of_all(stages):
    clear()
    return {stage: digest.code_digest(stage) for stage in stages}


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
    assert [part.split(":")[0] for part in of("a").split()] == ["a", "deep", "helper"]


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
        assert [part.split(":")[0] for part in of("b").split()] == ["b", "helper"]


def test_modules_that_import_each_other_end(tree):
    (tree / "lib" / "helper.py").write_text("from scripts.lib import other\n")
    (tree / "lib" / "other.py").write_text("from scripts.lib import helper\n")
    assert [part.split(":")[0] for part in of("a").split()] == ["a", "helper", "other"]


def test_imports_of_libraries_are_not_followed(tree):
    (tree / "b.py").write_text("import json\nfrom pathlib import Path\nimport polars\n")
    assert [part.split(":")[0] for part in of("b").split()] == ["b"]


def test_the_pin_of_a_deciding_package_stands_beside_the_modules_of_those_that_import_it(tree):
    (tree / "lib" / "helper.py").write_text("def f():\n    from torch import nn\n    import trl\n")
    assert re.fullmatch(r"a:[0-9a-f]{10} helper:[0-9a-f]{10} torch==2\.13\.0", of("a"))
    assert "torch" not in of("b")


def test_another_pinned_version_changes_the_digest_of_those_that_import_it_only(tree):
    (tree / "b.py").write_text("import torch\n")
    old = of("a"), of("b")
    (digest.ROOT / digest.PINS).write_text("torch==2.14.0\npolars==3.0.0\n")
    assert of("a") == old[0]
    assert of("b") == old[1].replace("2.13.0", "2.14.0")


def test_a_digest_names_each_module_with_ten_hex_digits_stage_first(tree):
    assert re.fullmatch(r"a:[0-9a-f]{10} helper:[0-9a-f]{10}", of("a"))


def test_an_unknown_stage_is_refused_by_name(tree):
    with pytest.raises(ValueError, match=r"no module scripts\.nothing"):
        of("nothing")


def test_a_changed_project_helper_changes_exactly_the_stages_that_name_it(project):
    scripts, stages = project
    old = of_all(stages)
    seeds = scripts / "lib" / "seeds.py"
    seeds.write_text(seeds.read_text() + "\nANOTHER = 1\n")
    now = of_all(stages)
    changed = {stage for stage in stages if now[stage] != old[stage]}
    assert changed == {stage for stage in stages if " seeds:" in old[stage]}
    assert {"sample_rollouts", "train_dpo"} <= changed
    assert "evaluate" not in changed


def test_a_changed_project_stage_changes_no_other_stage(project):
    scripts, stages = project
    old = of_all(stages)
    path = scripts / "evaluate.py"
    path.write_text(path.read_text() + "\nANOTHER = 1\n")
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


def test_an_engine_counts_for_its_own_samplings_only(tree):
    root = tree[0].parent if isinstance(tree, tuple) else tree.parent
    (root / "scripts" / "a.py").write_text(
        "def run():\n    import torch\n    from scripts.lib import engine_x, engine_vllm\n"
    )
    (root / "scripts" / "lib" / "engine_x.py").write_text("import transformers\n")
    (root / "scripts" / "lib" / "engine_vllm.py").write_text("import vllm\n")
    (root / "envs" / "requirements-train.txt").write_text("torch==2.13.0\ntransformers==5.23.0\n")
    (root / "envs" / "requirements-rollout.txt").write_text("vllm==0.32.0\ntorch==2.12.0\n")

    def both():
        clear()
        return digest.code_digest("a", "x"), digest.code_digest("a", "vllm")

    x, vllm = both()
    assert x.endswith("torch==2.13.0 transformers==5.23.0") and "engine_vllm" not in x
    assert vllm.endswith("torch==2.12.0 vllm==0.32.0") and "engine_x" not in vllm
    (root / "scripts" / "lib" / "engine_vllm.py").write_text("import vllm\nX = 1\n")
    assert both()[0] == x
    assert both()[1] != vllm
