"""Memory that goes back to the system when it is freed."""

import ctypes
import platform
import threading

import numpy as np
import pytest

from normstream.clients.edge.memory import given_back

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the threshold is glibc's")

SIZE = 30 * 2**20  # more than the heap is likely to have free


class Mallinfo(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd")] + [
        (name, ctypes.c_size_t) for name in ("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    ]


def mapped() -> int:
    """Bytes of blocks that were taken from the system one by one."""
    mallinfo = ctypes.CDLL(None).mallinfo2
    mallinfo.restype = Mallinfo
    return int(mallinfo().hblkhd)


def test_large_blocks_are_taken_one_by_one_and_given_back():
    before = mapped()
    with given_back():
        block = np.empty(SIZE, np.uint8)
        assert mapped() >= before + SIZE
    assert mapped() >= before + SIZE
    del block
    assert mapped() < before + SIZE


def test_afterwards_they_come_from_the_heap():
    with given_back():
        pass
    before = mapped()
    block = np.empty(SIZE, np.uint8)
    assert mapped() < before + SIZE
    del block


def test_of_two_threads_the_last_one_ends_it():
    inside, leave = threading.Event(), threading.Event()

    def other():
        with given_back():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    thread.start()
    assert inside.wait(10)
    with given_back():
        pass
    before = mapped()
    block = np.empty(SIZE, np.uint8)
    assert mapped() >= before + SIZE
    del block
    leave.set()
    thread.join()
    before = mapped()
    block = np.empty(SIZE, np.uint8)
    assert mapped() < before + SIZE
    del block
