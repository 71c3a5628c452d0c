"""Files of a hub's repository at one commit: found, fetched, and held against the digests that the hub lists.

Only the fetching stages use it, and only they use a network. HF_ENDPOINT names another hub. A token comes from the
variable HF_TOKEN alone, never from a file, and is written nowhere. What an interrupted step has fetched whole lies in
its work folder and is not fetched again.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Read when huggingface_hub is imported.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["HF_HUB_DISABLE_IMPLICIT_TOKEN"] = "1"  # noqa: S105

import httpx2
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile

from scripts.lib.stage.digest import file_sha256
from scripts.lib.stage.errors import InputError
from scripts.lib.stage.progress import progress


@dataclass(frozen=True)
class Repository:
    """A repository at one commit: `kind` is model or dataset, `files` maps each path in it to what the hub lists."""

    name: str
    kind: str
    commit: str
    files: dict[str, Any]


def token() -> str | bool:
    """HF_TOKEN; False asks the library to send none."""
    return os.environ.get("HF_TOKEN") or False


@contextmanager
def explained(name: str, revision: str) -> Iterator[None]:
    """Turn the hub's errors about a repository into InputErrors that say what to do."""
    where = f"{name} at {revision}"
    try:
        yield
    except GatedRepoError as error:
        hint = "accept its licence on its page of the hub, and put your token into the variable HF_TOKEN."
        raise InputError(f"{where}: access is granted by its owners only\nHint: {hint}") from error
    except RepositoryNotFoundError as error:
        hint = "check `repo`; a private one needs a token in the variable HF_TOKEN."
        raise InputError(f"{where}: the hub has no such repository\nHint: {hint}") from error
    except RevisionNotFoundError as error:
        raise InputError(f"{where}: no such revision\nHint: its page of the hub lists the commits.") from error
    except (OSError, httpx2.HTTPError) as error:
        hint = "look at the network and at HF_ENDPOINT, and start again: whole files that were fetched are kept."
        raise InputError(f"{where}: {type(error).__name__}: {error}\nHint: {hint}") from error


def find(name: str, revision: str, kind: str) -> Repository:
    """The repository at a revision: a commit (40 hex digits), or a branch, of which the commit is found out.

    Raises InputError if the hub does not have it, does not grant it, answers with another commit, or lists a path that
    leads out of a folder.
    """
    api = HfApi(token=token())
    with explained(name, revision):
        commit = str(api.repo_info(name, revision=revision, repo_type=kind).sha)
        if revision != commit and revision != "main":
            raise InputError(f"{name} at {revision}: the hub answers with {commit}\nHint: name the full commit.")
        listed = api.list_repo_tree(name, revision=commit, repo_type=kind, recursive=True)
        files = {entry.path: entry for entry in listed if isinstance(entry, RepoFile)}
    if outside := [path for path in files if {"", ".", ".."} & set(path.split("/")) or "\\" in path]:
        raise InputError(f"{name} at {commit}: lists {outside}\nHint: no such path is fetched; choose another source.")
    progress(f"{name} at {commit}: {len(files)} files")
    return Repository(name, kind, commit, files)


def fetch(repository: Repository, names: list[str], folder: Path) -> None:
    """Fetch files into a work folder, each once. Raises InputError if one is not what the hub lists.

    They come one after the other, each checked and told of when it is there. The library's snapshot_download would hold
    Ctrl-C back until every file under way has arrived, and returns only once all have.
    """
    for name in names:
        listed = repository.files[name]
        with explained(repository.name, repository.commit):
            fetched = Path(
                hf_hub_download(
                    repository.name,
                    name,
                    repo_type=repository.kind,
                    revision=repository.commit,
                    local_dir=folder,
                    token=token(),
                )
            )
        if digest(fetched, listed) != (listed.lfs.sha256 if listed.lfs else listed.blob_id):
            fetched.unlink()
            raise InputError(
                f"{repository.name}: {name} is not what the hub lists at {repository.commit}\n"
                "Hint: it was damaged on its way; start again."
            )
        progress(f"{name}: {listed.size / 1e6:,.1f} MB")


def digest(path: Path, listed: Any) -> str:
    """A file's digest of the kind that the hub lists: SHA-256 of a large file, git's own SHA-1 of another."""
    if listed.lfs:
        return file_sha256(path)
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def take(folder: Path, names: list[str], target: Path) -> None:
    """Put fetched files into another folder of the same disk, without a second copy where it allows that."""
    for name in names:
        place = target / name
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            place.hardlink_to(folder / name)
        except OSError:  # a file system without hard links
            place.write_bytes((folder / name).read_bytes())
