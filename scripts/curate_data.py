"""One data set as a table: conversations or preferences, from the project's world, local files, or a hub's."""

import sys
from typing import Any

from scripts.lib.data import formats, licences, sources, tables, world
from scripts.lib.data.schemas.conversations import CONVERSATIONS
from scripts.lib.data.schemas.preferences import PREFERENCES
from scripts.lib.stage import contract
from scripts.lib.stage.errors import InputError

Rows = list[dict[str, Any]]


def from_world(job: contract.Job) -> list[tuple[str, formats.Example]]:
    """(source, example) of every row that the world makes; never an annotator's margin, which would be gold."""
    split, size, seed = job.settings["split"], job.settings["size"], job.settings["seed"]
    if job.settings["type"] == "conversations" and split != "sft":
        raise InputError(f"split = {split!r}: the world has conversations in split sft only\nHint: set split: sft.")
    made: Any
    try:
        if job.settings["type"] == "conversations":
            made = world.demonstrations(size, seed)
            golds = [world.gold(row["requests"], row["completion"])[0] for row in made]
            job.metrics = {"mean_gold": sum(golds) / size}
        else:
            made = world.preferences(size, seed, split=split)
            agreeing = sum(row["gold_chosen"] > row["gold_rejected"] for row in made)
            job.metrics = {"agreement_with_gold": agreeing / size}
    except ValueError as error:
        raise InputError(f"the world cannot make this data set: {error}") from error
    answers = ("completion",) if job.settings["type"] == "conversations" else ("chosen", "rejected")
    job.counts = {"rows_in": size}
    return [
        (
            f"world/{split}",
            formats.Example(
                [{"role": "user", "content": row["content"]}], tuple(row[name] for name in answers), annotator="world"
            ),
        )
        for row in made
    ]


def from_files(job: contract.Job) -> list[tuple[str, formats.Example]]:
    """(source, example) of the rows of files that fit, in digest order; exactly `size` where one is given."""
    paths = job.inputs["source"] + sources.fetched(job.inputs["fetched"])
    found, counts = formats.read(paths, job.settings["type"], job.settings)
    size = len(found) if job.settings["size"] is None else job.settings["size"]
    if len(found) < max(1, size):
        raise formats.shortfall(len(found), max(1, size), counts)
    if len(found) > size:
        counts["dropped_beyond_size"] = len(found) - size
    job.counts = dict(counts)
    job.metrics = {"license": job.settings["license"]}
    for folder in job.inputs["fetched"]:
        job.metrics = {**licences.described(folder, job.settings["license"])}
    return found[:size]


def run(job: contract.Job) -> None:
    """Write the data set, one row per example."""
    examples = from_world(job) if job.settings["kind"] == "world" else from_files(job)
    job.counts["rows_out"] = len(examples)
    table: Rows = []
    for source, example in examples:
        row: dict[str, Any] = {"prompt_id": example.prompt_id, "source": source, "messages": example.messages}
        if job.settings["type"] == "conversations":
            row["messages"] = [*example.messages, {"role": "assistant", "content": example.answers[0]}]
            row["conversation_id"] = example.id
        else:
            row["chosen"], row["rejected"] = example.answers
            row |= {"pair_id": example.id, "margin": example.margin, "annotator": example.annotator}
        table.append(row)
    if job.settings["type"] == "conversations":
        tables.write_table(job.output, table, CONVERSATIONS, ("conversation_id",))
    else:
        longer = sum(len(row["chosen"]) > len(row["rejected"]) for row in table)
        job.metrics["chosen_longer"] = longer / len(table)
        tables.write_table(job.output, table, PREFERENCES, ("pair_id",))
    job.metrics["prompts"] = len({row["prompt_id"] for row in table})
    job.note = f"{len(table)} of {job.counts['rows_in']} {job.settings['type']}"


def main(argv: list[str] | None = None) -> int:
    """Command line; see `--help`."""
    return contract.execute("curate_data", run, ("source*", "fetched?"), argv)


if __name__ == "__main__":
    sys.exit(main())
