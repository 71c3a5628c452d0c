"""The errors that a person can mend: bad config and bad input. Each message ends in a hint."""


class InputError(Exception):
    """An input that cannot be used. The message names the file or row, the value, and what is allowed."""


class ConfigError(Exception):
    """A configuration that cannot be used. The message lists every error found, not only the first."""
