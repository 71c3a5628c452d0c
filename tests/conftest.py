"""One finished tiny build, made once for all tests that need it, in a copy of the checkout."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def pytest_addoption(parser):
    parser.addoption("--fix", action="store_true", help="rewrite golden files; say why in the commit")
    parser.addoption("--build", type=Path, help="--build=FOLDER: a finished build of this checkout, to save making one")


def pytest_xdist_make_scheduler(config, log):
    """Two workers: tests of one file stay with one of them, and so do those of the finished build, and of the SLURM."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::")[0]
            if file.startswith("tests/slurm/"):
                return "slurm"
            return "build" if file.startswith(("tests/finished/", "tests/test_readme.py")) else file

    return Scheduling(config, log)


def run(checkout: Path, *command: str, check: bool = True) -> subprocess.CompletedProcess:
    """Run a command in a checkout with this environment's programs first on PATH."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        cwd=checkout,
        env={**os.environ, "PATH": path, "PYTHONDONTWRITEBYTECODE": ""},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    if check and done.returncode != 0:
        pytest.fail(f"{' '.join(command)} exited {done.returncode}\n{done.stdout[-6000:]}\n{done.stderr[-6000:]}")
    return done


def jobs(output: str) -> list[str]:
    """`rule output` of every job that a dry run plans, sorted; rules without outputs by name alone."""
    planned, rule = [], None
    for line in output.splitlines():
        word = line.split("rule ", 1)[-1].rstrip(":") if line.startswith(("rule ", "localrule ")) else None
        if word:
            rule = word
            planned.append(rule)
        elif rule and line.startswith("    output: "):
            planned[-1] = f"{rule} {line.removeprefix('    output: ').split(', ')[0]}"
            rule = None
    return sorted(planned)


def planned_jobs(output: str) -> list[dict]:
    """The jobs that a dry run with -p prints: rule, input, output, threads, resources by name, the shell command."""
    planned = []
    for block in re.split(r"^(?=(?:local)?rule \S+:$)", output, flags=re.MULTILINE)[1:]:
        rule = re.match(r"(?:local)?rule (\S+):", block)[1]
        fields = dict(re.findall(r"^    (\w+): (.*)$", block, flags=re.MULTILINE))
        shell = re.search(r"^Shell command: (.*)$", block, flags=re.MULTILINE)
        listed = {name: fields[name].split(", ") if name in fields else [] for name in ("input", "output")}
        resources = dict(pair.split("=", 1) for pair in fields.get("resources", "").split(", ") if pair)
        job = {"rule": rule, **listed, "threads": int(fields.get("threads", 1)), "resources": resources}
        planned.append({**job, "shell": shell[1] if shell else ""})
    return planned


def copy_checkout(target: Path) -> Path:
    """The files that git would commit, as they are now, in another folder."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    ).stdout.split("\0")
    for name in filter(None, listed):
        source = ROOT / name
        if source.exists() or source.is_symlink():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target / name, follow_symlinks=False)
    return target


@pytest.fixture(scope="session")
def checkout(tmp_path_factory) -> Path:
    """A copy of the checkout in which nothing has been built."""
    return copy_checkout(tmp_path_factory.mktemp("clean") / "ouroboros")


@pytest.fixture(scope="session")
def build(request, tmp_path_factory) -> Path:
    """A copy of the checkout in which `snakemake all` has run: what `make demo` leaves behind."""
    if given := request.config.getoption("--build"):
        return given
    made = copy_checkout(tmp_path_factory.mktemp("build") / "ouroboros")
    run(made, "snakemake", "all")
    return made


@pytest.fixture
def scratch_build(build, tmp_path) -> Path:
    """A copy of the finished build that a test may damage."""
    return Path(shutil.copytree(build, tmp_path / "ouroboros", symlinks=True))
