"""What invalidates: each change of a finished build plans exactly the jobs that it must, and no other."""

import shutil
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.rebuild.mutations import NOT_RUN, TABLE


@pytest.fixture(scope="session")
def planned(builds, side_by_side, request, tmp_path_factory):
    """What each mutation plans, by name; at the end the table with numbers is written to a file, whose path is told."""

    def plan(name: str) -> set[str]:
        mutation = TABLE[name]
        checkout = builds.copy() if mutation.change else builds.made
        if mutation.change:
            mutation.change(checkout)
        found = builds.plan(checkout, mutation.target, options=mutation.options, overlay=mutation.overlay)
        if mutation.change:
            shutil.rmtree(checkout)
        return found

    futures = side_by_side(plan, "mutation")
    yield futures
    done = {name: future.result() for name, future in futures.items() if future.done() and not future.exception()}
    lines = [f"{name:<80} {len(TABLE[name].wanted):>6} {len(found):>7}\n" for name, found in done.items()]
    table: Path = tmp_path_factory.mktemp("mutations") / "table.txt"
    table.write_text(f"{'mutation':<80} wanted planned\n{''.join(lines)}")
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\n{len(lines)} mutations with the numbers of their jobs: {table}")


@pytest.mark.parametrize("mutation", TABLE)
def test_a_change_plans_exactly_these_jobs(planned, mutation):
    found, wanted = planned[mutation].result(), TABLE[mutation].wanted
    assert {"missing": sorted(wanted - found), "unwanted": sorted(found - wanted)} == {"missing": [], "unwanted": []}


def test_every_module_that_a_digest_may_name_has_a_row():
    rooms = ("scripts/lib/planning/", "scripts/lib/stage/", "scripts/lib/kinds/")
    files = [path.relative_to(ROOT).as_posix() for path in (ROOT / "scripts").rglob("*.py")]
    named = {name for name in files if not name.startswith(rooms) and not name.endswith("__init__.py")}
    assert named - TABLE.keys() - NOT_RUN == set()
