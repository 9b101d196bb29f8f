"""The events of streams, as their watchers read them."""

import re
from collections.abc import AsyncGenerator
from typing import Any

from normstream.service.storage.keyspace import Keyspace
from normstream.service.storage.records import LoggedEvent, UnknownStream
from normstream.service.storage.redis_link import RedisLink

_EVENT_ID = re.compile(r"\d{1,19}-\d{1,19}")
_BEGINNING = "0-0"


class EventLog:
    """Follows the Redis streams into which the store's scripts write events."""

    def __init__(self, link: RedisLink, keys: Keyspace, poll_s: float) -> None:
        self._link = link
        self._keys = keys
        self._poll_s = poll_s

    async def follow(self, stream_id: str, after: str | None) -> AsyncGenerator[LoggedEvent, None]:
        """What happens to a stream from now on, or after the event `after`; ends with `deleted`.

        Raises:
            UnknownStream: There is no such stream, nor events of it that the reader has not seen.
            ValueError: `after` is no event id.
        """
        if after is not None and not _EVENT_ID.fullmatch(after):
            raise ValueError(
                f"'{after}' is no event id: give one that this stream has sent, such as '1700000000000-0'."
            )
        generation = await self._generation(stream_id)
        cursor = after or await self._newest(stream_id)
        if generation is None and not (after and await self._read(stream_id, cursor)):
            raise UnknownStream(stream_id)
        return self._events(stream_id, generation, cursor)

    async def _events(
        self, stream_id: str, generation: bytes | str | None, cursor: str
    ) -> AsyncGenerator[LoggedEvent, None]:
        while True:
            events = await self._read(stream_id, cursor, block_s=self._poll_s)
            for event in events:
                yield event
                if event.type == "deleted":
                    return
                cursor = event.id
            # A stream that expires cannot say so: its events expire with it.
            if not events and (generation is None or await self._generation(stream_id) != generation):
                yield LoggedEvent(cursor, "deleted", b"{}")
                return

    async def _generation(self, stream_id: str) -> bytes | str | None:
        async with self._link.reach() as redis:
            return await redis.hget(self._keys.stream(stream_id), "generation")

    async def _newest(self, stream_id: str) -> str:
        async with self._link.reach() as redis:
            entries: Any = await redis.xrevrange(self._keys.events(stream_id), count=1)
        return entries[0][0].decode() if entries else _BEGINNING

    async def _read(self, stream_id: str, cursor: str, block_s: float = 0.0) -> list[LoggedEvent]:
        streams: Any = {self._keys.events(stream_id): cursor}
        # To Redis, blocking for 0 ms is blocking for ever.
        block_ms = int(block_s * 1000) or None
        async with self._link.reach(block_s) as redis:
            reply: Any = await redis.xread(streams, count=100, block=block_ms)
        return [_logged(entry) for _, entries in reply for entry in entries]


def _logged(entry: tuple[bytes, dict[bytes, bytes]]) -> LoggedEvent:
    event_id, fields = entry
    return LoggedEvent(event_id.decode(), fields[b"type"].decode(), fields[b"data"])
