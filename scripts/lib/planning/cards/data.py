"""Data: conversations, preferences and prompt sets as tables, and the files of a hub that they are read from."""

from scripts.lib.data import sources
from scripts.lib.kinds import data as kinds
from scripts.lib.kinds.common import Block
from scripts.lib.kinds.data import (
    CurateFiles,
    CurateHub,
    CurateWorld,
    FetchData,
    PromptsOfFiles,
    PromptsOfHub,
    PromptsOfWorld,
)
from scripts.lib.planning.card import Card, Wildcards
from scripts.lib.planning.runs import Runs
from scripts.lib.stage.errors import ConfigError


def revision(name: str, block: kinds.DatasetHub | kinds.PromptsHub, number: int) -> dict[str, str]:
    """Repository and revision of a hub's source; `number` is N of SET-N."""
    commit = block.revision
    if isinstance(commit, list):
        if number > len(commit):
            raise ConfigError(
                f"prompts.{name}.revision names {len(commit)} revisions; there is none for SET-{number}. Hint: add it."
            )
        commit = commit[number - 1]
    return {"repo": block.repo.replace("{n}", str(number)), "revision": commit}


def fetch_settings(plan: Runs, wildcards: Wildcards) -> Block:
    """The files of a hub that a data set or prompt set is read from; a `source` is NAME, or SET-N."""
    block, (name, _, number) = wildcards["block"], wildcards["source"].partition("-")
    given = plan.source(block, name)
    if not isinstance(given, kinds.DatasetHub | kinds.PromptsHub):
        kind = None if given is None else given.kind
        raise ConfigError(f"{block}.{name} does not come from a hub. Hint: its kind is {kind!r}.")
    at = revision(name, given, int(number or 1))
    return FetchData(**at, pattern=given.pattern, license=given.license)


def curate_settings(plan: Runs, wildcards: Wildcards) -> Block:
    """A data set: local files count by their bytes and not by their place."""
    name = wildcards["dataset"]
    block = plan.config.datasets[name]
    if isinstance(block, kinds.DatasetWorld):
        return CurateWorld(**plan.seeded(block))
    if isinstance(block, kinds.DatasetHub):
        return CurateHub(**block.model_dump(exclude={"rows"}))
    files = sources.digest(block.path, block.pattern, f"datasets.{name}.path")
    return CurateFiles(**block.model_dump(exclude={"path"}), files=files)


def prompts_settings(plan: Runs, wildcards: Wildcards) -> Block:
    """The prompt set SET-N; a repository of its own is not cut into slices."""
    name, _, number = wildcards["prompts"].rpartition("-")
    block = plan.config.prompts.get(name)
    if block is None:
        listed = ", ".join(plan.config.prompts)
        raise ConfigError(f"prompt set {name!r} is not in the config. Hint: it has {listed}.")
    left = {"shard_prompts"}
    if isinstance(block, kinds.PromptsWorld):
        return PromptsOfWorld(**plan.seeded(block, *left), number=int(number))
    if isinstance(block, kinds.PromptsHub):
        at = revision(name, block, int(number))
        place = 1 if "{n}" in block.repo else int(number)
        return PromptsOfHub(**block.model_dump(exclude=left) | at, number=place)
    files = sources.digest(block.path, block.pattern, f"prompts.{name}.path")
    return PromptsOfFiles(**block.model_dump(exclude=left | {"path"}), files=files, number=int(number))


def local_files(plan: Runs, block: str, name: str) -> list[str]:
    """The local files that a data set or prompt set is read from; none for those made here or fetched."""
    given = plan.source(block, name)
    if not isinstance(given, kinds.DatasetFiles | kinds.PromptsFiles):
        return []
    return [str(path) for path in sources.files(given.path, given.pattern, f"{block}.{name}.path")]


CARDS = (
    Card(
        name="fetch_data",
        output="source/{block}/{source}/files",
        settings=fetch_settings,
        local=True,
    ),
    Card(
        name="curate_data",
        output="data/{dataset}.parquet",
        inputs=lambda plan, wildcards: {"fetched": plan.fetched("datasets", wildcards["dataset"])},
        sources=lambda plan, wildcards: local_files(plan, "datasets", wildcards["dataset"]),
        settings=curate_settings,
    ),
    Card(
        name="make_prompts",
        output="prompts/{prompts}.parquet",
        inputs=lambda plan, wildcards: {"fetched": plan.fetched("prompts", wildcards["prompts"])},
        sources=lambda plan, wildcards: local_files(plan, "prompts", wildcards["prompts"].rsplit("-", 1)[0]),
        settings=prompts_settings,
        local=True,
    ),
)
