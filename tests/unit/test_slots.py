"""GPUs of one machine by slots: no two steps on one GPU, none forgotten."""

import errno
import os
import subprocess
import sys
import time

import pytest

from scripts.lib.stage import slots

HOLD = """
import os, sys
from scripts.lib.stage import slots
slots.take(int(sys.argv[1]))
print(os.environ["CUDA_VISIBLE_DEVICES"], flush=True)
# As the launcher does: another program takes this process over, and the locks with it.
os.execvp("cat", ["cat"])
"""


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with three GPUs and no lock taken."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,4")
    monkeypatch.setattr(slots.tempfile, "tempdir", None)
    return tmp_path


@pytest.fixture
def hold(machine):
    """Start a process that holds GPUs until its input is closed: hold(count) → (process, its first line or None)."""
    started = []

    def start(count):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(count)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_each_step_gets_gpus_of_its_own_and_waits_while_there_are_none(hold):
    first, second = hold(1), hold(1)
    one, other = first.stdout.readline().strip(), second.stdout.readline().strip()
    assert one != other
    third = hold(2)
    assert "waiting for 2 of 3 GPUs" in third.stderr.readline()
    first.stdin.close()
    first.wait()
    assert set(third.stdout.readline().strip().split(",")) == {"0", "1", "4"} - {other}


def test_a_killed_step_gives_its_gpus_back(hold, machine, monkeypatch):
    process = hold(3)
    process.stdout.readline()
    assert slots._try("0") is None
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while (descriptor := slots._try("0")) is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert descriptor is not None
    os.close(descriptor)


def test_more_gpus_than_there_are_is_an_error_at_once(machine):
    with pytest.raises(SystemExit, match="4 GPUs are asked for, 3 are visible"):
        slots.take(4)


def test_a_machine_without_gpus_has_nothing_to_hand_out(machine, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert slots.take(1) == []


@pytest.mark.parametrize("program", ["absent", "failing"])
def test_gpus_that_cannot_be_listed_are_not_taken_for_none(machine, monkeypatch, program):
    programs, devices = machine / "bin", machine / "dev"
    for folder in (programs, devices):
        folder.mkdir()
    if program == "failing":
        (programs / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
        (programs / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setattr(slots, "DEVICES", devices)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    (devices / "nvidiactl").touch()
    assert slots.take(1) == []
    (devices / "nvidia0").touch()
    with pytest.raises(
        SystemExit, match=r"(?s)nvidia0 in .*cannot be listed: .*nvidia-smi.*Hint: set CUDA_VISIBLE_DEVICES"
    ):
        slots.take(1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert slots.take(1) == []


def test_a_temporary_folder_without_locks_is_named(machine, monkeypatch):
    def none(descriptor, operation):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(slots.fcntl, "flock", none)
    with pytest.raises(SystemExit, match=r"no flock .*\nHint: let TMPDIR name a folder on this machine's own disk"):
        slots.take(1)
