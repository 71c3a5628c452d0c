"""What a model or data card says of itself, and the licence files that travel with it."""

import fnmatch
import re
import shutil
from pathlib import Path
from typing import Any

import yaml

from scripts.lib.stage.digest import file_sha256
from scripts.lib.stage.errors import InputError

CARD = "README.md"
LEGAL = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")


def names(found: list[str]) -> list[str]:
    """The card and the licence files among the names of a folder's files, not of folders inside it."""
    top = [name for name in found if "/" not in name]
    return [name for name in top if name == CARD or any(fnmatch.fnmatchcase(name, legal) for legal in LEGAL)]


def header(folder: Path) -> dict[str, Any]:
    """The YAML header of the folder's card; empty if it has none, or none that can be read."""
    card = folder / CARD
    text = card.read_text(errors="replace") if card.is_file() else ""
    found = re.match(r"\ufeff?---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
    try:
        read = yaml.safe_load(found[1]) if found else {}
    except yaml.YAMLError:
        read = {}
    return read if isinstance(read, dict) else {}


def described(folder: Path, said: str) -> dict[str, str]:
    """What a manifest says of a source: its `license`, and `card_sha256` if there is a card.

    `said` is the licence that the configuration names; `unknown` takes the card's. Where the card says `other`, its
    `license_name` counts too. Raises InputError if the card names another licence.
    """
    given = header(folder)
    of_card = [str(given[key]) for key in ("license_name", "license") if isinstance(given.get(key), str)]
    if isinstance(given.get("license"), list):
        of_card = [", ".join(map(str, given["license"]))]
    if said != "unknown" and of_card and said.lower() not in [name.lower() for name in of_card]:
        raise InputError(
            f"license = {said!r}: the card says {' or '.join(map(repr, of_card))}\n"
            "Hint: read the card; then name what it says, or unknown, which takes it over."
        )
    card = {"card_sha256": file_sha256(folder / CARD)} if (folder / CARD).is_file() else {}
    return {"license": of_card[0] if said == "unknown" and of_card else said, **card}


def copy(folder: Path, target: Path) -> None:
    """Copy the card and the licence files of a folder into another."""
    for name in names(sorted(file.name for file in folder.iterdir() if file.is_file())):
        shutil.copyfile(folder / name, target / name)
