"""The prompts of one iteration or benchmark as a table: SET-N, from the project's world, local files, or a hub's."""

import sys
from typing import Any

from scripts.lib.data import curation, licences, sources, tables, world
from scripts.lib.data.schemas.prompts import PROMPTS
from scripts.lib.kinds.data import MakePrompts, PromptsOfFiles, PromptsOfHub, PromptsOfWorld
from scripts.lib.stage import contract
from scripts.lib.stage.artifact import canonical_json
from scripts.lib.stage.errors import InputError


def from_world(job: contract.Job[MakePrompts], settings: PromptsOfWorld) -> list[dict[str, Any]]:
    """The Nth slice of `size` prompts of the world's split; validation and evaluation have one."""
    number, size, split = settings.number, settings.size, settings.split
    if split != "iteration" and number != 1:
        raise InputError(f"number = {number}: the world has one {split} set\nHint: ask for number 1.")
    try:
        made = world.prompts(split, size * number, settings.seed)[size * (number - 1) :]
    except ValueError as error:
        raise InputError(f"the world cannot make these prompts: {error}") from error
    job.counts = {"rows_in": size}
    return [
        {
            "source": f"world/{split}",
            "messages": [{"role": "user", "content": row["content"]}],
            "metadata": canonical_json(row["requests"]),
        }
        for row in made
    ]


def from_files(job: contract.Job[MakePrompts], settings: PromptsOfFiles | PromptsOfHub) -> list[dict[str, Any]]:
    """The Nth slice of `size` prompts of files, in digest order."""
    size, number = settings.size, settings.number
    paths = job.inputs["source"] + sources.fetched(job.inputs["fetched"])
    examples, counts = curation.read(paths, "prompts", settings)
    if len(examples) < size * number:
        raise curation.shortfall(len(examples), size * number, counts)
    if len(examples) > size:
        counts["dropped_other_slice"] = len(examples) - size
    job.counts = dict(counts)
    job.metrics = {"license": settings.license}
    for folder in job.inputs["fetched"]:
        job.metrics = {**licences.described(folder, settings.license)}
    return [
        {"source": source, "messages": example.messages, "metadata": ""}
        for source, example in examples[size * (number - 1) : size * number]
    ]


def run(job: contract.Job[MakePrompts]) -> None:
    """Write exactly `size` prompts, each once."""
    settings = job.settings
    table = from_world(job, settings) if isinstance(settings, PromptsOfWorld) else from_files(job, settings)
    for row in table:
        row["prompt_id"] = tables.prompt_id(row["messages"])
    job.counts["rows_out"] = tables.write_table(job.output, table, PROMPTS, ("prompt_id",))
    job.note = f"{len(table)} prompts of {job.counts['rows_in']} rows"


def main(argv: list[str] | None = None) -> int:
    """Command line; see `--help`."""
    return contract.execute("make_prompts", run, MakePrompts, ("source*", "fetched?"), argv)


if __name__ == "__main__":
    sys.exit(main())
