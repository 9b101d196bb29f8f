"""What all tests share."""

import gc
import os
from collections.abc import Generator
from pathlib import Path

import pytest

# Before torch is imported: threads that wait must not spin, or two processes on a few cores starve each other. One
# thread is what a worker has a core for; servers too have one, since the bits of a sum depend on how it is cut up.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NORMSTREAM_THREADS", "1")
# A machine that stands still for a moment is no Redis that is away; tests of that say how long they wait.
os.environ.setdefault("NORMSTREAM_REDIS_TIMEOUT_S", "20")


@pytest.hookimpl(wrapper=True, optionalhook=True)
def pytest_xdist_auto_num_workers() -> Generator[None, int, int]:
    """One worker more than cores: many tests wait for a server or a pause."""
    return 1 + (yield)


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages for all workers: making one takes seconds, and how they are made other tests look at."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "packages"
    folder.mkdir(exist_ok=True)
    return folder


def pytest_collection_finish() -> None:
    """What is imported and collected stays to the end: no garbage collection need look at it again."""
    gc.freeze()
