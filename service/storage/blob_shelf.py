"""Large blobs in Redis, in pieces: whatever their size, nobody else waits for longer than one piece takes.

A record names its blob by a random tag, and the blob has the record's key, a colon and the tag for a key. It never
changes: a record comes to name another. Each piece begins with the tag, so that none is taken for another's.
"""

import math
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from normstream.service.storage.records import Incomplete, StoreUnavailable
from normstream.service.storage.redis_link import RedisLink, owned

PIECE_BYTES = 1024 * 1024
_STAGED_MS = 60_000


@dataclass(frozen=True, slots=True)
class Blob:
    """Names a blob; that of nothing has no tag."""

    tag: str = ""
    size: int = 0

    @property
    def pieces(self) -> int:
        """How many there are when all is written."""
        return math.ceil(self.size / PIECE_BYTES)

    def key(self, record: str) -> str:
        """Where the blob of a record is."""
        return f"{record}:{self.tag}"


class BlobShelf:
    """Puts blobs down and reads them.

    Args:
        link: To Redis.
        field: Of a record, in which it names its blob.
    """

    def __init__(self, link: RedisLink, field: str) -> None:
        self._link = link
        self._field = field
        self._stage = link.script("stage")
        self._unstage = link.script("unstage")

    @asynccontextmanager
    async def staged(self, record: str, data: bytes) -> AsyncIterator[Blob]:
        """Put down a blob, for a script to make it the record's.

        What does not become the record's within the block is gone after it; if this server dies, after a minute.

        Args:
            record: The key of the record.
            data: The blob; of nothing, nothing is put down.
        """
        blob = Blob(secrets.token_hex(8), len(data)) if data else Blob()
        try:
            await self._put(record, blob, data)
            yield blob
        finally:
            if data:
                with suppress(StoreUnavailable):  # It ends itself.
                    async with self._link.reach():
                        await self._unstage([blob.key(record), record], [self._field, blob.tag])

    async def _put(self, record: str, blob: Blob, data: bytes) -> None:
        tag = blob.tag.encode()
        for place, start in enumerate(range(0, len(data), PIECE_BYTES)):
            piece = tag + data[start : start + PIECE_BYTES]
            async with self._link.reach():
                await self._stage([blob.key(record), record], [self._field, blob.tag, place, piece, _STAGED_MS])

    async def read(self, record: str, blob: Blob, what: str) -> bytes | None:
        """The blob that a record named; None when it names another since, or is gone.

        Raises:
            Incomplete: Redis lost a part of it; the message says of `what`.
        """
        pieces: list[memoryview] = []
        left = blob.size
        while left > 0:
            async with self._link.reach() as redis:
                found: Any = await redis.hget(blob.key(record), str(len(pieces)))
                if found is None:
                    named: Any = await redis.hget(record, self._field)
                    if named != blob.tag.encode():
                        return None
                    raise Incomplete(what)
            owned("a piece of", blob.tag, found[: len(blob.tag)].decode(errors="replace"))
            pieces.append(memoryview(found)[len(blob.tag) :])
            left -= len(pieces[-1])
        return b"".join(pieces)
