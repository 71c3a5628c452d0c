"""What a model or data card states, and the licence files that are copied with it."""

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


def names(files: list[str]) -> list[str]:
    """The card and the licence files among file names; files in subfolders do not count."""
    top = [name for name in files if "/" not in name]
    return [name for name in top if name == CARD or any(fnmatch.fnmatchcase(name, legal) for legal in LEGAL)]


def header(folder: Path) -> dict[str, Any]:
    """The YAML header of the folder's card; empty if there is none or it cannot be parsed."""
    card = folder / CARD
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    match = re.match(r"\ufeff?---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
    try:
        parsed = yaml.safe_load(match[1]) if match else {}
    except yaml.YAMLError:
        parsed = {}
    return parsed if isinstance(parsed, dict) else {}


def described(folder: Path, stated: str) -> dict[str, str]:
    """A manifest's entries about a source: its `license`, and `card_sha256` if there is a card.

    `stated` is the licence that the configuration names; `unknown` takes the card's. A card's `license_name`, which
    goes with `license: other`, counts too. Raises InputError if the card names another licence.
    """
    card = header(folder)
    of_card = [str(card[key]) for key in ("license_name", "license") if isinstance(card.get(key), str)]
    if isinstance(card.get("license"), list):
        of_card = [", ".join(map(str, card["license"]))]
    if stated != "unknown" and of_card and stated.lower() not in [name.lower() for name in of_card]:
        raise InputError(
            f"license = {stated!r}: the card says {' or '.join(map(repr, of_card))}\n"
            "Hint: read the card, then set `license` to what it says, or to unknown, which uses the card's."
        )
    digest = {"card_sha256": file_sha256(folder / CARD)} if (folder / CARD).is_file() else {}
    return {"license": of_card[0] if stated == "unknown" and of_card else stated, **digest}


def copy(folder: Path, target: Path) -> None:
    """Copy a folder's card and licence files into another folder."""
    for name in names(sorted(file.name for file in folder.iterdir() if file.is_file())):
        shutil.copyfile(folder / name, target / name)
