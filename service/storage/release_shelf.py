"""What edges were sent of a stream's last versions, in Redis: what a difference is made from."""

from typing import Any

from normstream.service.storage.keyspace import Keyspace
from normstream.service.storage.redis_link import RedisLink

KEPT = 4
TTL_S = 7 * 86400


class ReleaseShelf:
    """Keeps the last releases of a stream, opaque bytes, by precision and tag."""

    def __init__(self, link: RedisLink, keys: Keyspace) -> None:
        self._link = link
        self._keys = keys
        self._publish = link.script("publish")

    async def put(self, stream_id: str, precision: str, tag: str, release: bytes) -> None:
        """Keep a release; one that is there stays as it is."""
        async with self._link.reach():
            await self._publish([self._keys.releases(stream_id)], [precision, tag, release, KEPT, TTL_S * 1000])

    async def get(self, stream_id: str, precision: str, tag: str) -> bytes | None:
        """A release, if it is still kept."""
        async with self._link.reach() as redis:
            found: Any = await redis.hget(self._keys.releases(stream_id), f"{precision}:{tag}")
        return None if found is None else bytes(found)
