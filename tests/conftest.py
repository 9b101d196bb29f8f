"""What all tests share."""

import os
from collections.abc import Generator

import pytest

# Before torch is imported: threads that wait must not spin, or two processes on a few cores starve each other. One
# thread is what a worker has a core for; servers too have one, since the bits of a sum depend on how it is cut up.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NORMSTREAM_THREADS", "1")


@pytest.hookimpl(wrapper=True, optionalhook=True)
def pytest_xdist_auto_num_workers() -> Generator[None, int, int]:
    """One worker more than cores: many tests wait for a server or a pause."""
    return 1 + (yield)
