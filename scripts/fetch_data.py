"""The data files of a hub's repository at one commit, with their card and licence: what a data set is read from."""

import fnmatch
import sys

from scripts.lib.data import hub, licences, sources
from scripts.lib.kinds.data import FetchData
from scripts.lib.stage import artifact, contract
from scripts.lib.stage.errors import InputError


def run(job: contract.Job[FetchData]) -> None:
    """Fetch the JSONL and parquet files whose paths match the pattern."""
    settings, fetched = job.settings, job.work / "fetched"
    repository = hub.find(settings.repo, settings.revision, "dataset")
    files = sorted(repository.files)
    data = [name for name in files if sources.is_data(name) and fnmatch.fnmatchcase(name, settings.pattern)]
    if not data:
        there = [name for name in files if sources.is_data(name)]
        raise InputError(
            f"pattern = {settings.pattern!r}: matches none of the {len(there)} JSONL and parquet files {there[:8]}\n"
            "Hint: it is matched against paths in the repository; * also matches a slash."
        )
    legal = licences.names(files)
    hub.fetch(repository, legal, fetched)
    facts = licences.described(fetched, settings.license)
    hub.fetch(repository, data, fetched)
    artifact.write_model(job.output, lambda folder: hub.take(fetched, [*legal, *data], folder))
    job.metrics = {"repo": repository.name, "commit": repository.commit, **facts}
    job.counts = {"files": len(data), "bytes": sum(repository.files[name].size for name in data)}
    job.note = f"{job.counts['bytes'] / 1e6:.1f} MB of {repository.name} at {repository.commit[:10]}"


def main(argv: list[str] | None = None) -> int:
    """Command line; see `--help`."""
    return contract.execute("fetch_data", run, FetchData, (), argv)


if __name__ == "__main__":
    sys.exit(main())
