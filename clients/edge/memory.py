"""Memory that goes back to the system when it is freed.

glibc takes large blocks from the system one by one, which go back at once, until the first of them is freed; from then
on it takes ever larger ones from its heap, which keeps what lies between other blocks. A network's tensors would stay
there when its session ends, and so would its activations, for which a session takes memory in its first passes: an edge
that builds a session now and then would grow by some networks.
"""

from __future__ import annotations

import ctypes
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_M_MMAP_THRESHOLD = -3  # of malloc.h
_TENSORS = 128 * 1024  # glibc's own threshold at the start
_IMAGES = 32 * 1024**2  # and the highest it goes to: what comes and goes with each image stays in the heap

_lock = threading.Lock()
_users = 0


@contextmanager
def given_back() -> Iterator[None]:
    """Blocks from 128 KiB on that are allocated meanwhile, by any thread, go back to the system when they are freed."""
    global _users  # noqa: PLW0603 # the threshold is the process's too
    if platform.libc_ver()[0] != "glibc":
        yield
        return
    with _lock:
        _users += 1
        _set_threshold(_TENSORS)
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users:
                _set_threshold(_IMAGES)


def _set_threshold(size: int) -> None:
    ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, size)
