"""What the server sets for its process."""

import asyncio
import os
import platform
import subprocess
import sys
import threading

import pytest

from normstream.service import tensor_thread
from normstream.service.background import meanwhile
from normstream.service.tensor_thread import TensorThread
from normstream.service.tuning import spin_briefly


@pytest.fixture
def environment(monkeypatch):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "")  # Else what is set during a test would stay.
        monkeypatch.delenv(name)
    return monkeypatch


def test_threads_spin_for_a_while_only(environment):
    spin_briefly()
    assert 0 < int(os.environ["GOMP_SPINCOUNT"]) < 300_000  # GNU's default


@pytest.mark.parametrize(("name", "value"), [("GOMP_SPINCOUNT", "7"), ("OMP_WAIT_POLICY", "ACTIVE")])
def test_the_environment_has_the_last_word(environment, name, value):
    environment.setenv(name, value)
    spin_briefly()
    assert os.environ.get("GOMP_SPINCOUNT") == (value if name == "GOMP_SPINCOUNT" else None)


_LESSON = """
import ctypes
from pathlib import Path
from normstream.service.tuning import give_memory_back, keep_memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

keep_memory()
blocks = [ctypes.create_string_buffer(b"x" * 2**20, 2**20) for _ in range(200)]
top = ctypes.create_string_buffer(2**20)  # the heap cannot just shrink
del blocks
kept = resident()
give_memory_back()
print(kept - resident() < 10 * 2**20)
give_memory_back(beyond=100 * 2**20)
print(kept - resident() > 150 * 2**20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators keep nothing")
def test_what_a_lesson_leaves_goes_back_to_the_system():
    done = subprocess.run([sys.executable, "-c", _LESSON], capture_output=True, text=True, check=True)  # ours
    assert done.stdout.split() == ["True", "True"]


@pytest.fixture
def tidied(monkeypatch):
    """How often memory was given back; a thread is idle after a moment."""
    times = []
    monkeypatch.setattr(tensor_thread, "give_memory_back", lambda: times.append(threading.current_thread().name))
    monkeypatch.setattr(tensor_thread, "_IDLE_S", 0.05)
    return times


async def test_a_thread_that_has_worked_gives_memory_back_once_it_is_idle(tidied):
    with TensorThread(1) as thread:
        async with meanwhile(thread.tidy()):
            await asyncio.sleep(0.2)
            assert not tidied  # there is nothing to give back
            thread.submit(int)
            await asyncio.sleep(0.3)
            assert tidied == ["tensors_0"]
            thread.submit(int)
            await asyncio.sleep(0.3)
            assert len(tidied) == 2


async def test_a_thread_at_work_keeps_its_memory(tidied):
    with TensorThread(1) as thread:
        async with meanwhile(thread.tidy()):
            for _ in range(30):
                thread.submit(int)
                await asyncio.sleep(0.01)
            assert not tidied
