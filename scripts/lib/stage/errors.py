"""The errors that a person can mend: bad config and bad input. Each message ends in a hint."""

import difflib
from collections.abc import Iterable
from typing import Any


class InputError(Exception):
    """An input that cannot be used. The message names the file or row, the value, and what is allowed."""


class ConfigError(Exception):
    """A configuration that cannot be used. The message lists every error found, not only the first."""


class Complaints(list[str]):
    """Everything that is wrong with a configuration, one line each: key, value, what is allowed, hint."""

    def add(self, key: str, value: Any, text: str, hint: str) -> None:
        """Note one complaint; a value of None is left out."""
        shown = f"{key or 'config'} = {value!r}" if value is not None else key or "config"
        self.append(f"{shown}: {text}. Hint: {hint}")

    def unknown(self, key: str, value: Any, text: str, known: Iterable[Any]) -> None:
        """Note a name that is not among the known ones, with the nearest; the name is the value, or the key's last."""
        names = [str(name) for name in known]
        near = difflib.get_close_matches(str(value or key.rsplit(".", 1)[-1]), names, n=1, cutoff=0.5)
        self.add(key, value, text, f"did you mean {near[0]}?" if near else f"known are {', '.join(names) or 'none'}.")

    def raise_if_any(self, of: str) -> None:
        """Raise ConfigError with every complaint, under a title such as `config: 2 errors`; nothing without any."""
        if self:
            count = f"{len(self)} error{'s' * (len(self) > 1)}"
            raise ConfigError(f"{of}: {count}\n" + "\n".join(f"  - {complaint}" for complaint in self))
