"""Who may come in: a bounded number of requests, and none while the server drains."""

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from normstream.service.errors import Overloaded, Unavailable

Made = TypeVar("Made")


class Admission:
    """Counts the predict and label requests inside."""

    def __init__(self, max_inside: int) -> None:
        self._max_inside = max_inside
        self._inside = 0
        self._empty = asyncio.Event()
        self._empty.set()
        self.draining = asyncio.Event()

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Be inside while the block lasts.

        Raises:
            Overloaded: when as many are inside as may be.
            Unavailable: when the server drains.
        """
        if self.draining.is_set():
            raise Unavailable("The server is shutting down.", retry_after_s=2)
        if self._inside >= self._max_inside:
            raise Overloaded(
                f"{self._inside} requests are waiting or running, as many as may be. Come back later.", retry_after_s=1
            )
        self._inside += 1
        self._empty.clear()
        try:
            yield
        finally:
            self._inside -= 1
            if not self._inside:
                self._empty.set()

    async def drain(self, timeout_s: float) -> bool:
        """Let nobody in any more and wait for those inside; False when some are left after `timeout_s`."""
        self.draining.set()
        try:
            async with asyncio.timeout(timeout_s):
                await self._empty.wait()
        except TimeoutError:
            return False
        return True

    async def until_draining(self, work: Coroutine[Any, Any, Made]) -> Made:
        """Do what may take long, or drop it when the server drains.

        Raises:
            Unavailable: when it was dropped.
        """
        task, draining = asyncio.ensure_future(work), asyncio.ensure_future(self.draining.wait())
        try:
            await asyncio.wait({task, draining}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return await task
            raise Unavailable("The server is shutting down.", retry_after_s=2)
        finally:
            for each in (task, draining):
                each.cancel()
            await asyncio.gather(task, draining, return_exceptions=True)
