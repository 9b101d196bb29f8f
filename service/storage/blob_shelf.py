"""Large blobs in Redis, in pieces: whatever their size, nobody else waits for longer than one piece takes."""

import math
from typing import Any

from normstream.service.storage.redis_link import RedisLink

PIECE_BYTES = 1024 * 1024
_STAGED_MS = 60_000


class BlobShelf:
    """Puts blobs down and reads them. A blob never changes: a record names another in its place.

    Args:
        link: To Redis.
        field: Of a record, in which it names its blob.
    """

    def __init__(self, link: RedisLink, field: str) -> None:
        self._link = link
        self._field = field
        self._stage = link.script("stage")

    async def put(self, key: str, data: bytes, *, record: str, tag: str) -> int:
        """Put down a blob, which is gone after a minute unless a script makes it the record's.

        Returns:
            How many pieces it has, which that script is to find.
        """
        pieces = math.ceil(len(data) / PIECE_BYTES)
        for place in range(pieces):
            piece = data[place * PIECE_BYTES : (place + 1) * PIECE_BYTES]
            async with self._link.reach():
                await self._stage([key, record], [self._field, tag, place, piece, _STAGED_MS])
        return pieces

    async def drop(self, key: str) -> None:
        """Take away a blob that has become no record's."""
        async with self._link.reach() as redis:
            await redis.unlink(key)

    async def get(self, key: str, size: int) -> bytes:
        """A blob of this size; cut short where a piece is missing."""
        data = bytearray()
        for place in range(math.ceil(size / PIECE_BYTES)):
            async with self._link.reach() as redis:
                piece: Any = await redis.hget(key, str(place))
            if piece is None:
                break
            data += piece
        return bytes(data)
