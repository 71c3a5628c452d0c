"""The default: tells the shape of each row from its columns."""

from scripts.lib.data.adapters import general, nectar
from scripts.lib.data.examples import Example


def parse(row: object, kind: str) -> Example:
    """A row with `answers` as Nectar's, any other as one of the general shapes. Raises Unfit for a row that is none."""
    if isinstance(row, dict) and row.get("answers") is not None:
        return nectar.parse(row, kind)
    return general.parse(row, kind)
