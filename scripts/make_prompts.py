"""The prompts of one iteration or benchmark as a table: SET-N, from the project's world, local files, or a hub's."""

import sys
from typing import Any

from scripts.lib.data import formats, licences, sources, tables, world
from scripts.lib.data.schemas.prompts import PROMPTS
from scripts.lib.stage import contract
from scripts.lib.stage.artifact import canonical_json
from scripts.lib.stage.errors import InputError


def from_world(job: contract.Job) -> list[dict[str, Any]]:
    """The world's prompts; each iteration has a split of its own, and so have validation and evaluation."""
    split, number, size = job.settings["split"], job.settings["number"], job.settings["size"]
    if split != "iteration" and number != 1:
        raise InputError(f"number = {number}: the world has one {split} set\nHint: ask for number 1.")
    split = f"iter{number}" if split == "iteration" else split
    try:
        made = world.prompts(split, size, job.settings["seed"])
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


def from_files(job: contract.Job) -> list[dict[str, Any]]:
    """The Nth slice of `size` prompts of files, in digest order."""
    size, number = job.settings["size"], job.settings["number"]
    paths = job.inputs["source"] + sources.fetched(job.inputs["fetched"])
    found, counts = formats.read(paths, "prompts", job.settings)
    if len(found) < size * number:
        raise formats.shortfall(len(found), size * number, counts)
    if len(found) > size:
        counts["dropped_other_slice"] = len(found) - size
    job.counts = dict(counts)
    job.metrics = {"license": job.settings["license"]}
    for folder in job.inputs["fetched"]:
        job.metrics = {**licences.described(folder, job.settings["license"])}
    return [
        {"source": source, "messages": example.messages, "metadata": ""}
        for source, example in found[size * (number - 1) : size * number]
    ]


def run(job: contract.Job) -> None:
    """Write exactly `size` prompts, each once."""
    table = from_world(job) if job.settings["kind"] == "world" else from_files(job)
    for row in table:
        row["prompt_id"] = tables.prompt_id(row["messages"])
    job.counts["rows_out"] = tables.write_table(job.output, table, PROMPTS, ("prompt_id",))
    job.note = f"{len(table)} prompts of {job.counts['rows_in']} rows"


def main(argv: list[str] | None = None) -> int:
    """Command line; see `--help`."""
    return contract.execute("make_prompts", run, ("source*", "fetched?"), argv)


if __name__ == "__main__":
    sys.exit(main())
