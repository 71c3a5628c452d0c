"""Seeds: every random choice comes from the config's seed and from what is being chosen, never from a clock."""

import hashlib


def derive_seed(*parts: object) -> int:
    """A seed in [0, 2**31) from any printable parts, the same in every process and Python version."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1
