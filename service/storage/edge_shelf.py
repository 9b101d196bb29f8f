"""The registered edges in Redis."""

from collections.abc import Mapping
from typing import Any

from redis.exceptions import WatchError

from normstream.service.storage.keyspace import Keyspace
from normstream.service.storage.records import EdgeRecord, UnknownEdge, field_names, from_fields, to_fields
from normstream.service.storage.redis_link import RedisLink, owned


class EdgeShelf:
    """Puts, finds and drops edges, each under a key of its own, in the list of all and among those of its stream.

    An edge lives in another slot of a cluster than these lists. They may name edges that are gone, which are taken out
    as they are met; they name every edge that is there.
    """

    def __init__(self, link: RedisLink, keys: Keyspace) -> None:
        self._link = link
        self._keys = keys
        self._note = link.script("note")

    async def put(self, record: EdgeRecord) -> tuple[EdgeRecord, bool]:
        """Keep an edge, unless one of its id is there; the edge kept or found, and whether it was kept."""
        key = self._keys.edge(record.id)
        fields: Any = to_fields(record)
        async with self._link.reach() as redis, redis.pipeline() as pipe:
            await redis.sadd(self._keys.edges_of(record.stream), record.id)
            await redis.zadd(self._keys.edges, {record.id: 0})
            await pipe.watch(key)
            if not await pipe.exists(key):
                pipe.multi()  # type: ignore[no-untyped-call] # redis annotates it in part
                pipe.hset(key, mapping=fields)
                try:
                    await pipe.execute()
                    return record, True
                except WatchError:
                    pass  # Another came first.
        return await self.get(record.id), False

    async def get(self, edge_id: str) -> EdgeRecord:
        """An edge.

        Raises:
            UnknownEdge: There is none.
        """
        found = await self._records([edge_id])
        if edge_id not in found:
            raise UnknownEdge(edge_id)
        return found[edge_id]

    async def page(self, limit: int, after: str | None) -> tuple[list[EdgeRecord], str | None]:
        """The edges that follow the id `after`, and the last of them if yet more follow."""
        found: list[EdgeRecord] = []
        while len(found) <= limit and (ids := await self._link.ids(self._keys.edges, limit + 1 - len(found), after)):
            records = await self._records(ids)
            await self._drop_gone(set(ids) - set(records))
            found += records.values()
            after = ids[-1]
        return found[:limit], found[limit - 1].id if len(found) > limit else None

    async def note(self, edge_id: str, fields: Mapping[str, Any], bytes_up: int = 0, bytes_down: int = 0) -> None:
        """Keep what was heard of an edge; of one that is gone, nothing."""
        values = [item for pair in fields.items() for item in pair]
        async with self._link.reach():
            await self._note([self._keys.edge(edge_id)], [bytes_up, bytes_down, *values])

    async def delete(self, edge_id: str) -> tuple[EdgeRecord, bool]:
        """Drop an edge; says also whether it was the last of its stream.

        Raises:
            UnknownEdge: There is none.
        """
        record = await self.get(edge_id)
        members = self._keys.edges_of(record.stream)
        async with self._link.reach() as redis:
            deleted = await redis.unlink(self._keys.edge(edge_id))
            await redis.srem(members, edge_id)
            await redis.zrem(self._keys.edges, edge_id)
            left = await redis.scard(members)
        if not deleted:
            raise UnknownEdge(edge_id)
        return record, not left

    async def _records(self, ids: list[str]) -> dict[str, EdgeRecord]:
        async with self._link.reach() as redis, redis.pipeline(transaction=False) as pipe:
            for edge_id in ids:
                pipe.hmget(self._keys.edge(edge_id), field_names(EdgeRecord))
            replies = await pipe.execute()
        found: dict[str, EdgeRecord] = {}
        for edge_id, values in zip(ids, replies, strict=True):
            if values[0] is not None:
                found[edge_id] = from_fields(EdgeRecord, values)
                owned("edge", edge_id, found[edge_id].id)
        return found

    async def _drop_gone(self, gone: set[str]) -> None:
        """Take out edges that are gone, and put back those that were registered at that very moment."""
        if not gone:
            return
        async with self._link.reach() as redis:
            await redis.zrem(self._keys.edges, *gone)
        if back := await self._records(sorted(gone)):
            async with self._link.reach() as redis:
                await redis.zadd(self._keys.edges, dict.fromkeys(back, 0))
