"""Memory that goes back to the system when it is freed."""

import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the threshold is glibc's")

# In a process of its own, whose heap has no room left from other tests.
PROCESS = """
import ctypes, threading
import numpy as np
from normstream.clients.edge.memory import given_back

class Mallinfo(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]

def mapped():  # bytes of blocks that were taken from the system one by one
    mallinfo = ctypes.CDLL(None).mallinfo2
    mallinfo.restype = Mallinfo
    return mallinfo().hblkhd

def one_by_one(size=4 * 2**20):
    before = mapped()
    block = np.empty(size, np.uint8)
    return mapped() >= before + size
"""


def check(script: str) -> None:
    command = [sys.executable, "-c", PROCESS + script]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_large_blocks_are_given_back():
    check("""
before = mapped()
with given_back():
    block = np.empty(4 * 2**20, np.uint8)
    assert mapped() >= before + 4 * 2**20
assert mapped() >= before + 4 * 2**20
del block
assert mapped() == before
""")


def test_afterwards_they_come_from_the_heap():
    check("""
with given_back():
    pass
assert not one_by_one()
""")


def test_of_two_threads_the_last_one_ends_it():
    check("""
inside, leave = threading.Event(), threading.Event()

def other():
    with given_back():
        inside.set()
        leave.wait(10)

thread = threading.Thread(target=other)
thread.start()
inside.wait(10)
with given_back():
    pass
assert one_by_one()
leave.set()
thread.join()
assert not one_by_one()
""")
