"""Snapshots in Redis: states that outlive the streams they were taken from."""

from itertools import chain
from typing import Any

from normstream.service.storage.blob_shelf import Blob, BlobShelf
from normstream.service.storage.keyspace import Keyspace
from normstream.service.storage.records import (
    Incomplete,
    Snapshot,
    SnapshotRecord,
    SnapshotSummary,
    StoreUnavailable,
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
        self._blobs = BlobShelf(link, "state_tag")
        self._shelve = link.script("shelve")
        self._unshelve = link.script("unshelve")

    async def put(self, record: SnapshotRecord) -> bool:
        """Keep a snapshot; False when there is one of its id already, which stays as it is."""
        key = self._keys.snapshot(record.id)
        async with self._link.reach() as redis:
            if await redis.exists(key):
                return False
        fields = {**to_fields(record), "state_bytes": record.state_bytes}
        del fields["state"]
        async with self._blobs.staged(key, record.state) as blob, self._link.reach() as redis:
            args = [blob.tag, blob.pieces, *chain.from_iterable(fields.items())]
            outcome = await self._shelve([key, blob.key(key)], args)
            if outcome == b"done" and record.stream is not None:
                await redis.zadd(self._keys.snapshots_of(record.stream), {record.id: record.created_at})
        if outcome == b"incomplete":
            raise StoreUnavailable(f"Redis lost a part of snapshot '{record.id}' before it was made.")
        return bool(outcome == b"done")

    async def get(self, snapshot_id: str) -> SnapshotRecord:
        """The snapshot with its state.

        Raises:
            UnknownSnapshot: There is none.
            Incomplete: Redis lost a part of it.
        """
        key = self._keys.snapshot(snapshot_id)
        async with self._link.reach() as redis:
            found: Any = await redis.hmget(key, [*field_names(SnapshotSummary), "state_tag"])
        *values, tag = found
        if values[0] is None:
            raise UnknownSnapshot(snapshot_id)
        summary = from_fields(SnapshotSummary, values)
        owned("snapshot", snapshot_id, summary.id)
        what = f"snapshot '{snapshot_id}'"
        if tag is None:
            raise Incomplete(what)
        state = await self._blobs.read(key, Blob(tag.decode(), summary.state_bytes), what)
        if state is None:
            raise UnknownSnapshot(snapshot_id)
        return SnapshotRecord(state=state, **{name: getattr(summary, name) for name in field_names(Snapshot)})

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
        async with self._link.reach() as redis:
            stream = await self._unshelve([self._keys.snapshot(snapshot_id)])
            if stream is None:
                raise UnknownSnapshot(snapshot_id)
            if stream:
                await redis.zrem(self._keys.snapshots_of(stream.decode()), snapshot_id)
