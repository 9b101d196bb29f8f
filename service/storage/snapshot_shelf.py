"""Snapshots in Redis: states that outlive the streams they were taken from."""

from typing import Any

from redis.exceptions import WatchError

from normstream.service.storage.keyspace import Keyspace
from normstream.service.storage.records import (
    SnapshotRecord,
    SnapshotSummary,
    UnknownSnapshot,
    field_names,
    from_fields,
    to_fields,
)
from normstream.service.storage.redis_link import RedisLink, owned


class SnapshotShelf:
    """Puts, finds and drops snapshots, each under a key of its own and in the index of its stream."""

    def __init__(self, link: RedisLink, keys: Keyspace) -> None:
        self._link = link
        self._keys = keys

    async def put(self, record: SnapshotRecord) -> bool:
        """Keep a snapshot; False when there is one of its id already, which stays as it is."""
        key = self._keys.snapshot(record.id)
        fields: Any = {**to_fields(record), "state_bytes": record.state_bytes}
        async with self._link.reach() as redis, redis.pipeline() as pipe:
            await pipe.watch(key)
            if await pipe.exists(key):
                return False
            pipe.multi()  # type: ignore[no-untyped-call] # redis annotates it in part
            pipe.hset(key, mapping=fields)
            try:
                await pipe.execute()
            except WatchError:  # Another came first.
                return False
            if record.stream is not None:
                await redis.zadd(self._keys.snapshots_of(record.stream), {record.id: record.created_at})
            return True

    async def get(self, snapshot_id: str) -> SnapshotRecord:
        """The snapshot with its state.

        Raises:
            UnknownSnapshot: There is none.
        """
        async with self._link.reach() as redis:
            values: Any = await redis.hmget(self._keys.snapshot(snapshot_id), field_names(SnapshotRecord))
        if values[0] is None:
            raise UnknownSnapshot(snapshot_id)
        record = from_fields(SnapshotRecord, values)
        owned("snapshot", snapshot_id, record.id)
        return record

    async def of_stream(self, stream_id: str) -> list[SnapshotSummary]:
        """The snapshots taken of a stream, newest first, without their states."""
        async with self._link.reach() as redis, redis.pipeline(transaction=False) as pipe:
            ids: Any = await redis.zrange(self._keys.snapshots_of(stream_id), 0, -1, desc=True)
            for snapshot_id in ids:
                pipe.hmget(self._keys.snapshot(snapshot_id.decode()), field_names(SnapshotSummary))
            found = await pipe.execute()
        summaries = [from_fields(SnapshotSummary, values) for values in found if values[0] is not None]
        # A snapshot may have gone, and its id been taken by an upload, which is no stream's.
        return [summary for summary in summaries if summary.stream == stream_id]

    async def delete(self, snapshot_id: str) -> None:
        """Drop a snapshot.

        Raises:
            UnknownSnapshot: There is none.
        """
        key = self._keys.snapshot(snapshot_id)
        async with self._link.reach() as redis:
            stream: Any = await redis.hget(key, "stream")
            if not await redis.unlink(key):
                raise UnknownSnapshot(snapshot_id)
            if stream:
                await redis.zrem(self._keys.snapshots_of(stream.decode()), snapshot_id)
