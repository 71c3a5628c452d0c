"""Seeds: every random choice depends on the config's seed and on what is being chosen, never on a clock."""

import hashlib


def derive_seed(*parts: object) -> int:
    """A seed in [0, 2**31) from any printable parts, the same in every process and Python version."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1
