"""What must be set for the whole process, before torch is imported.

Both settings are worth more than most code: measured figures are in docs/performance.md.
"""

import ctypes
import os
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # from glibc's malloc.h
_LARGEST = 2**30


def prepare_process() -> None:
    """Let threads sleep while they wait, and let the allocator keep the memory of activations.

    OpenMP's threads spin at each of a network's hundreds of barriers, and where something else wants the cores, as
    Redis, decoding or another process does, they spin through whole time slices. And glibc gives large blocks back to
    the kernel after each layer, which hands out the same pages, zeroed, for the next.
    """
    if "torch" not in sys.modules:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    _keep_memory()


def _keep_memory() -> None:
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST)
        libc.mallopt(_M_TRIM_THRESHOLD, _LARGEST)
    except (OSError, AttributeError):
        return  # Not glibc: its allocator is as it is.
