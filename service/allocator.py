"""The allocator of the process, set for activations."""

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h
_LARGEST = 2**30


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
