"""The files that the page is laid out by, and the digests that stand for their bytes.

They are no Python, so the digest of the stage's code does not see them: they enter by its settings.
"""

from pathlib import Path

from scripts.lib.stage.digest import file_sha256
from scripts.lib.stage.errors import InputError

FOLDER = Path(__file__).resolve().parent / "templates"
PATTERNS = ("*.html.jinja", "*.css")


def digests() -> list[str]:
    """`SHA-256  name` of every template and style sheet, in the order of their names."""
    paths = [path for pattern in PATTERNS for path in FOLDER.glob(pattern)]
    return [f"{file_sha256(path)}  {path.name}" for path in sorted(paths)]


def verify(planned: list[str]) -> None:
    """Raise InputError unless the files' bytes are those that the build was planned with."""
    present = digests()
    if sorted(present) != sorted(planned):
        raise InputError(
            f"templates: files differ from the planned ones: {sorted(set(present) ^ set(planned))}\n"
            "Hint: they changed after the build was planned; start Snakemake again."
        )
