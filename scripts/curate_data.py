"""One data set as a table: conversations or preferences, from the project's world, local files, or a hub's."""

import sys
from typing import Any

from scripts.lib.data import curation, licences, sources, tables, world
from scripts.lib.data.examples import Example
from scripts.lib.data.schemas.conversations import CONVERSATIONS
from scripts.lib.data.schemas.preferences import PREFERENCES
from scripts.lib.kinds.data import Curated, CurateData, CurateWorld
from scripts.lib.stage import contract
from scripts.lib.stage.errors import InputError

Rows = list[dict[str, Any]]


def from_world(job: contract.Job[CurateData], settings: CurateWorld) -> list[tuple[str, Example]]:
    """(source, example) of every row that the world makes; never an annotator's margin, which would be gold."""
    split, size, seed = settings.split, settings.size, settings.seed
    if settings.type == "conversations" and split != "sft":
        raise InputError(f"split = {split!r}: the world has conversations in split sft only\nHint: set split: sft.")
    made: Any
    try:
        if settings.type == "conversations":
            made = world.demonstrations(size, seed)
            golds = [world.gold(row["requests"], row["completion"])[0] for row in made]
            job.metrics = {"mean_gold": sum(golds) / size}
        else:
            made = world.preferences(size, seed, split=split)
            agreeing = sum(row["gold_chosen"] > row["gold_rejected"] for row in made)
            job.metrics = {"agreement_with_gold": agreeing / size}
    except ValueError as error:
        raise InputError(f"the world cannot make this data set: {error}") from error
    answers = ("completion",) if settings.type == "conversations" else ("chosen", "rejected")
    job.counts = {"rows_in": size}
    return [
        (
            f"world/{split}",
            Example(
                [{"role": "user", "content": row["content"]}], tuple(row[name] for name in answers), annotator="world"
            ),
        )
        for row in made
    ]


def from_files(job: contract.Job[CurateData], settings: Curated) -> list[tuple[str, Example]]:
    """(source, example) of the rows of files that fit, in digest order; exactly `size` where one is given."""
    paths = job.inputs["source"] + sources.fetched(job.inputs["fetched"])
    examples, counts = curation.read(paths, settings.type, settings)
    size = len(examples) if settings.size is None else settings.size
    if len(examples) < max(1, size):
        raise curation.shortfall(len(examples), max(1, size), counts)
    if len(examples) > size:
        counts["dropped_beyond_size"] = len(examples) - size
    job.counts = dict(counts)
    job.metrics = {"license": settings.license}
    for folder in job.inputs["fetched"]:
        job.metrics = {**licences.described(folder, settings.license)}
    return examples[:size]


def run(job: contract.Job[CurateData]) -> None:
    """Write the data set, one row per example."""
    settings = job.settings
    examples = from_world(job, settings) if isinstance(settings, CurateWorld) else from_files(job, settings)
    job.counts["rows_out"] = len(examples)
    table: Rows = []
    for source, example in examples:
        row: dict[str, Any] = {"prompt_id": example.prompt_id, "source": source, "messages": example.messages}
        if job.settings.type == "conversations":
            row["messages"] = [*example.messages, {"role": "assistant", "content": example.answers[0]}]
            row["conversation_id"] = example.id
        else:
            row["chosen"], row["rejected"] = example.answers
            row |= {"pair_id": example.id, "margin": example.margin, "annotator": example.annotator}
        table.append(row)
    if job.settings.type == "conversations":
        tables.write_table(job.output, table, CONVERSATIONS, ("conversation_id",))
    else:
        longer = sum(len(row["chosen"]) > len(row["rejected"]) for row in table)
        job.metrics["chosen_longer"] = longer / len(table)
        tables.write_table(job.output, table, PREFERENCES, ("pair_id",))
    job.metrics["prompts"] = len({row["prompt_id"] for row in table})
    job.note = f"{len(table)} of {job.counts['rows_in']} {job.settings.type}"


def main(argv: list[str] | None = None) -> int:
    """Command line; see `--help`."""
    return contract.execute("curate_data", run, CurateData, ("source*", "fetched?"), argv)


if __name__ == "__main__":
    sys.exit(main())
