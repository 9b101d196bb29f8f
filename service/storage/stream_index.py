"""The list of all streams."""

from collections.abc import Iterable

from normstream.service.storage.keyspace import Keyspace
from normstream.service.storage.records import StreamSummary, field_names, from_fields
from normstream.service.storage.redis_link import RedisLink


class StreamIndex:
    """Finds streams by the sorted set of their ids.

    The set lives in another slot of a cluster than a stream does, so it cannot change together with one. It may
    name streams that are gone, which are taken out as they are met; it names every stream that is there.
    """

    def __init__(self, link: RedisLink, keys: Keyspace) -> None:
        self._link = link
        self._keys = keys

    async def page(self, limit: int, after: str | None) -> tuple[list[StreamSummary], str | None]:
        """The streams that follow the id `after`, and the last of them if yet more follow."""
        found: list[StreamSummary] = []
        while len(found) <= limit and (ids := await self._link.ids(self._keys.index, limit + 1 - len(found), after)):
            summaries = await self.summaries(ids)
            await self.drop_gone(set(ids) - set(summaries))
            found += summaries.values()
            after = ids[-1]
        return found[:limit], found[limit - 1].id if len(found) > limit else None

    async def summaries(self, ids: Iterable[str]) -> dict[str, StreamSummary]:
        """Those of the streams that are there, by id, without their states."""
        async with self._link.reach() as redis, redis.pipeline(transaction=False) as pipe:
            for stream_id in ids:
                pipe.hmget(self._keys.stream(stream_id), field_names(StreamSummary))
            replies = await pipe.execute()
        found = [from_fields(StreamSummary, values) for values in replies if values[0] is not None]
        return {summary.id: summary for summary in found}

    async def drop_gone(self, gone: Iterable[str]) -> None:
        """Take out streams that are gone, and put back those that were made anew at that very moment."""
        if not (ids := sorted(gone)):
            return
        async with self._link.reach() as redis:
            await redis.zrem(self._keys.index, *ids)
        if back := await self.summaries(ids):
            async with self._link.reach() as redis:
                await redis.zadd(self._keys.index, dict.fromkeys(back, 0))
