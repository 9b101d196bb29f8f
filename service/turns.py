"""The order of a stream's requests: each waits for the one before it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager


class Turns:
    """Tickets by stream. Requests of one stream take turns in the order they took tickets; streams do not meet."""

    def __init__(self) -> None:
        self._last: dict[str, asyncio.Future[None]] = {}

    @asynccontextmanager
    async def ticket(self, stream_id: str) -> AsyncIterator[Callable[[], Awaitable[bool]]]:
        """Take a ticket; the block may do what needs no turn, then await what it was given, then act.

        What it awaits says whether another request held a ticket before.
        """
        before = self._last.get(stream_id)
        mine = self._last[stream_id] = asyncio.get_running_loop().create_future()

        async def turn() -> bool:
            if before is not None:
                await asyncio.shield(before)
            return before is not None

        try:
            yield turn
        finally:
            # Who leaves before its turn leaves its place to the next, which still waits for those before.
            if before is None or before.done():
                self._pass_on(stream_id, mine)
            else:
                before.add_done_callback(lambda _: self._pass_on(stream_id, mine))

    def _pass_on(self, stream_id: str, mine: "asyncio.Future[None]") -> None:
        mine.set_result(None)
        if self._last.get(stream_id) is mine:
            del self._last[stream_id]
