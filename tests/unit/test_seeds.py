"""Derived seeds."""

import hashlib

from scripts.lib.data.seeds import derive_seed


def test_a_seed_is_the_first_31_bits_of_the_digest_of_its_parts():
    digest = hashlib.sha256(b"1\x1fabc\x1f0").hexdigest()
    assert derive_seed(1, "abc", 0) == int(digest[:8], 16) >> 1


def test_seeds_are_the_same_in_every_process():
    assert [derive_seed(), derive_seed(1), derive_seed(1, "a", 2)] == [1910006305, 901994809, 218484509]


def test_seeds_fit_in_31_bits_and_do_not_collide_over_small_numbers():
    seeds = {derive_seed(run, k) for run in range(20) for k in range(50)}
    assert len(seeds) == 1000
    assert min(seeds) >= 0
    assert max(seeds) < 2**31


def test_the_order_and_the_borders_of_parts_count():
    assert derive_seed("a", "b") != derive_seed("b", "a")
    assert derive_seed("ab", "c") != derive_seed("a", "bc")
    assert derive_seed("a") != derive_seed("a", "")


def test_a_number_and_its_text_are_the_same_part():
    assert derive_seed(7) == derive_seed("7")
