"""How long a request may wait: for its body, for its turn, for a large state, for the model."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from normstream.service.errors import TimedOut


class Deadline:
    """The time by which a request's waiting must be over; one exchange with the store is bounded by the store."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._at = asyncio.get_running_loop().time() + timeout_s

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Wait no longer than that in the block.

        Raises:
            TimedOut: when the time is over.
        """
        try:
            async with asyncio.timeout_at(self._at):
                yield
        except TimeoutError:
            raise TimedOut(
                f"The request took longer than {self._timeout_s:g} s, and was dropped. Send fewer images, or come back"
                " when the server has less to do."
            ) from None
