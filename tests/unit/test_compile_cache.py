"""Engines that start at the same time: one compiles, the others wait for it, later ones wait for nobody."""

import errno
import multiprocessing
import time

import pytest

from scripts.lib.models import compile_cache

ARGUMENTS = {"model": "runs/main/iter1/policy", "dtype": "float32", "seed": 1}


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "cache"))
    (tmp_path / "config.json").write_text("{}")
    return tmp_path


def start(config, arguments, told, inside, leave, fails=False):
    """An engine's start in a process of its own: says when it compiles, and ends when it is told to."""
    with compile_cache.first_compiles(config, arguments, "1", "H100"):
        inside.set()
        told.append(arguments["seed"])
        leave.wait(30)
        if fails:
            raise KeyboardInterrupt


def engine(place, manager, told, seed=1, fails=False):
    inside, leave = manager.Event(), manager.Event()
    arguments = ARGUMENTS | {"seed": seed}
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
        # Another seed compiles the same; it waits.
        second, inside_second, leave_second = engine(place, manager, told, seed=2)
        time.sleep(1)
        assert not inside_second.is_set()
        leave.set()
        assert inside_second.wait(30)
        # The cache is filled: the third starts beside the second.
        third, inside_third, leave_third = engine(place, manager, told, seed=3)
        assert inside_third.wait(30)
        for event in (leave_second, leave_third):
            event.set()
        for process in (first, second, third):
            process.join(30)
            assert process.exitcode == 0
        assert sorted(told) == [1, 2, 3]


def test_when_the_first_fails_the_next_one_compiles(place):
    with multiprocessing.Manager() as manager:
        told = manager.list()
        first, inside, leave = engine(place, manager, told, fails=True)
        assert inside.wait(30)
        leave.set()
        first.join(30)
        assert first.exitcode != 0
    assert not list((place / "cache").glob("*.done"))
    with compile_cache.first_compiles(place / "config.json", ARGUMENTS, "1", "H100"):
        assert not list((place / "cache").glob("*.done"))
    assert len(list((place / "cache").glob("*.done"))) == 1


@pytest.mark.parametrize(
    "differing", [{"dtype": "bfloat16"}, {"tensor_parallel_size": 2}, {"model": "runs/main/iter2/policy"}]
)
def test_other_arguments_compile_apart(place, differing):
    for given in ({}, differing):
        with compile_cache.first_compiles(place / "config.json", ARGUMENTS | given, "1", "H100"):
            pass
    assert len(list((place / "cache").glob("*.done"))) == 2


def test_kinds_of_gpus_compile_apart(place):
    for gpu in ("H100", "A100", "H100"):
        with compile_cache.first_compiles(place / "config.json", ARGUMENTS, "1", gpu):
            pass
    assert len(list((place / "cache").glob("*.done"))) == 2


def test_a_file_system_without_locks_keeps_no_engine_from_sampling(place, monkeypatch, capsys):
    def none(file, kind):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(compile_cache.fcntl, "flock", none)
    for _ in range(2):
        with compile_cache.first_compiles(place / "config.json", ARGUMENTS, "1", "H100"):
            pass
    assert len(list((place / "cache").glob("*.done"))) == 1
    (said,) = capsys.readouterr().err.splitlines()
    assert "no flock (No locks available)" in said and str(place / "cache") in said
