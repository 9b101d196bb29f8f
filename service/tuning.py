"""What the server sets for its whole process, and a library may not."""

import ctypes
import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h
_LARGEST = 2**30
_SPINS = 20_000  # a fraction of a millisecond


def keep_memory() -> None:
    """Let glibc keep the memory of activations.

    By default it gives large blocks back to the kernel after each layer, which hands out the same pages, zeroed, for
    the next; docs/performance.md has what that costs.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST)
        libc.mallopt(_M_TRIM_THRESHOLD, _LARGEST)
    except (OSError, AttributeError):
        return  # Not glibc: its allocator is as it is.


class _Mallinfo2(ctypes.Structure):
    """glibc's account of its heaps (malloc.h); `fordblks` is what is free in them, in bytes."""

    _fields_ = (("others", ctypes.c_size_t * 8), ("fordblks", ctypes.c_size_t), ("keepcost", ctypes.c_size_t))


def give_memory_back(beyond: int = _LARGEST) -> None:
    """Give what `keep_memory` lets glibc keep back to the kernel, where it is more than so many bytes.

    A lesson leaves gigabytes; the activations of an image are not worth fetching anew for each.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallinfo2.restype = _Mallinfo2
        if libc.mallinfo2().fordblks > beyond:
            libc.malloc_trim(0)
    except (OSError, AttributeError):
        return  # Not glibc, or one before 2.33.


@contextmanager
def uncollected() -> Iterator[None]:
    """Keep the garbage collector from all that is made in the block, which is to stay: modules, say.

    It would look through them again and again while they are imported, at each of its full rounds, and once more when
    the process ends (docs/performance.md has what that cost).
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def spin_briefly() -> None:
    """Let OpenMP's threads go to sleep soon after a forward pass, unless the environment says how they wait.

    By default they spin on for milliseconds, on cores that are wanted for the answer, its commit and the next image.
    Between the layers of a pass they are never idle for so long.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(_SPINS))
