"""Engines that start at the same time: one compiles, the others wait for it, later ones wait for nobody."""

import multiprocessing
import time

import pytest

from scripts.lib import compile_cache


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "cache"))
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def start(config, arguments, told, inside, leave, fails=False):
    """An engine's start in a process of its own: says when it compiles, and ends when it is told to."""
    with compile_cache.first_compiles(config, arguments, "1"):
        inside.set()
        told.append(arguments["model"])
        leave.wait(30)
        if fails:
            raise KeyboardInterrupt


def engine(place, manager, told, model="a", fails=False, **other):
    inside, leave = manager.Event(), manager.Event()
    arguments = {"model": model, "dtype": "float32", **other}
    process = multiprocessing.get_context("spawn").Process(
        target=start, args=(place / "config.json", arguments, told, inside, leave, fails)
    )
    process.start()
    return process, inside, leave


def test_the_second_engine_waits_for_the_first_and_the_third_for_nobody(place):
    with multiprocessing.Manager() as manager:
        told = manager.list()
        first, inside, leave = engine(place, manager, told)
        assert inside.wait(30)
        # Other weights and another seed compile the same; it waits.
        second, inside_second, leave_second = engine(place, manager, told, model="b", seed=2)
        time.sleep(1)
        assert not inside_second.is_set()
        leave.set()
        assert inside_second.wait(30)
        # The cache is filled: the third starts beside the second.
        third, inside_third, leave_third = engine(place, manager, told, model="c")
        assert inside_third.wait(30)
        for event in (leave_second, leave_third):
            event.set()
        for process in (first, second, third):
            process.join(30)
            assert process.exitcode == 0
        assert sorted(told) == ["a", "b", "c"]


def test_when_the_first_fails_the_next_one_compiles(place):
    with multiprocessing.Manager() as manager:
        told = manager.list()
        first, inside, leave = engine(place, manager, told, fails=True)
        assert inside.wait(30)
        leave.set()
        first.join(30)
        assert first.exitcode != 0
    assert not list((place / "cache").glob("*.done"))
    with compile_cache.first_compiles(place / "config.json", {"model": "b", "dtype": "float32"}, "1"):
        assert not list((place / "cache").glob("*.done"))
    assert len(list((place / "cache").glob("*.done"))) == 1


@pytest.mark.parametrize("differing", [{"dtype": "bfloat16"}, {"tensor_parallel_size": 2}])
def test_other_arguments_compile_apart(place, differing):
    for given in ({}, differing):
        with compile_cache.first_compiles(place / "config.json", {"model": "a", "dtype": "float32"} | given, "1"):
            pass
    assert len(list((place / "cache").glob("*.done"))) == 2
