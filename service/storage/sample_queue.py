"""The samples that wait to be learnt from, in Redis: a bounded queue for each stream."""

import json
import secrets
import struct
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from normstream.service.storage.keyspace import Keyspace
from normstream.service.storage.records import PendingSample, QueueFull, Tally
from normstream.service.storage.redis_link import RedisLink

KNOWN_IDS = 16_384
KNOWN_S = 7 * 86400.0
LEASE_S = 15.0
_READ_AT_ONCE = 8  # images, so that one exchange with Redis stays short


@dataclass(frozen=True, slots=True)
class Added:
    """What became of samples that came."""

    accepted: int
    pending: int


@dataclass(frozen=True, slots=True)
class Waiting:
    """A stream for which samples wait; times are unix seconds, and `taught_at` is 0 for one that never was."""

    stream: str
    model: str
    recipe: str
    samples: int
    oldest_at: float
    taught_at: float


class SampleQueue:
    """Takes samples in, once each, and hands them out in the order they came.

    They leave the queue with the commit of what was learnt from them (`Store.commit`), or are dropped here.

    Args:
        link: To Redis.
        keys: Their names there.
        clock: Gives the unix time in seconds.
        max_samples: Of a stream, waiting.
        max_bytes: Of their images.
        events_kept: About how many events of a stream a late reader can still get.
    """

    def __init__(
        self,
        link: RedisLink,
        keys: Keyspace,
        clock: Callable[[], float],
        *,
        max_samples: int,
        max_bytes: int,
        events_kept: int,
    ) -> None:
        self._link = link
        self._keys = keys
        self._clock = clock
        self._events_kept = events_kept
        self._max_samples = max_samples
        self._max_bytes = max_bytes
        self._enqueue = link.script("order", "enqueue")
        self._drop = link.script("samples", "drop")
        self._fail = link.script("samples", "fail")

    async def add(
        self, stream_id: str, edge_id: str, samples: Iterable[tuple[str, bytes, float]], *, shared: bool = False
    ) -> Added:
        """Take in an edge's samples, given as id, image and the time it was taken; those known already are left out.

        Where the queue is shared with other edges, one that has samples waiting takes no more of it than it leaves.

        Raises:
            QueueFull: They are too many; none was taken in.
        """
        keys = self._keys
        now = self._clock()
        args: list[Any] = [edge_id, now, self._max_samples, self._max_bytes, KNOWN_IDS, now - KNOWN_S, int(shared)]
        for sample_id, image, taken_at in samples:
            args += [f"{edge_id}/{sample_id}", struct.pack("<d", taken_at) + image]
        async with self._link.reach() as redis, redis.pipeline(transaction=False) as pipe:
            # The list is in another slot. Before: a crash in between leaves no sample unlisted. After: nor does a
            # worker that finds the queue still empty and takes the stream off the list.
            pipe.zadd(keys.waiting, {stream_id: 0})
            await self._enqueue([*keys.samples(stream_id), keys.known(stream_id)], args, client=pipe)
            pipe.zadd(keys.waiting, {stream_id: 0})
            _, (accepted, waiting, waiting_bytes, mine), _ = await pipe.execute()
        if accepted < 0:
            raise QueueFull(stream_id, waiting, waiting_bytes, mine)
        return Added(accepted, waiting)

    async def waiting(self) -> list[Waiting]:
        """The streams for which samples wait."""
        async with self._link.reach() as redis:
            listed: Any = await redis.zrange(self._keys.waiting, 0, -1)
        ids = [stream_id.decode() for stream_id in listed]
        found = await self._looked_at(ids)
        if gone := set(ids) - {each.stream for each in found}:
            async with self._link.reach() as redis:
                await redis.zrem(self._keys.waiting, *gone)
            if back := await self._looked_at(sorted(gone)):
                async with self._link.reach() as redis:
                    await redis.zadd(self._keys.waiting, {each.stream: 0 for each in back})
        return found

    async def _looked_at(self, ids: Sequence[str]) -> list[Waiting]:
        keys = self._keys
        async with self._link.reach() as redis, redis.pipeline(transaction=False) as pipe:
            for stream_id in ids:
                pipe.hmget(keys.stream(stream_id), ["model", "recipe"])
                pipe.zcard(keys.queue(stream_id))
                pipe.zrange(keys.queue(stream_id), 0, 0, withscores=True)
                pipe.hget(keys.tally(stream_id), "taught_at")
            replies = await pipe.execute()
        found = []
        for index, stream_id in enumerate(ids):
            (model, recipe), samples, oldest, taught_at = replies[4 * index : 4 * index + 4]
            if model is not None and oldest:
                at = float(oldest[0][1])
                found.append(Waiting(stream_id, model.decode(), recipe.decode(), samples, at, float(taught_at or 0)))
        return found

    async def first(self, stream_id: str, count: int) -> list[PendingSample]:
        """The samples that have waited longest, at most `count`."""
        async with self._link.reach() as redis:
            ids: Any = await redis.zrange(self._keys.queue(stream_id), 0, count - 1, withscores=True)
        samples = []
        for start in range(0, len(ids), _READ_AT_ONCE):
            group = ids[start : start + _READ_AT_ONCE]
            async with self._link.reach() as redis:
                images: Any = await redis.hmget(self._keys.images(stream_id), [sample_id for sample_id, _ in group])
            for (sample_id, received_at), packed in zip(group, images, strict=True):
                if packed is not None:  # else it was taken out meanwhile
                    (taken_at,) = struct.unpack_from("<d", packed)
                    samples.append(PendingSample(sample_id.decode(), packed[8:], taken_at, received_at))
        return samples

    async def ids(self, stream_id: str, until: float | None = None) -> list[str]:
        """The ids of the samples that wait, or of those that came until then."""
        last: Any = "+inf" if until is None else until
        async with self._link.reach() as redis:
            ids: Any = await redis.zrange(self._keys.queue(stream_id), "-inf", last, byscore=True)
        return [sample_id.decode() for sample_id in ids]

    async def drop(self, stream_id: str, ids: Sequence[str]) -> None:
        """Forget samples."""
        async with self._link.reach():
            await self._drop(self._keys.samples(stream_id), ids)

    async def fail(self, stream_id: str, ids: Sequence[str], reason: dict[str, Any], *, attempts: int) -> int:
        """Count a failed attempt to learn from these, which are dropped when it was the last; tells the watchers.

        Returns:
            How many attempts have failed; 0 when the stream is gone.
        """
        keys = [*self._keys.samples(stream_id), self._keys.events(stream_id), self._keys.stream(stream_id)]
        args = [self._clock(), attempts, self._events_kept, json.dumps(reason), *ids]
        async with self._link.reach():
            failed: int = await self._fail(keys, args)
        return failed

    async def tally(self, edges: Sequence[tuple[str, str]]) -> list[Tally]:
        """What became of the samples of edges, each given as stream and edge."""
        async with self._link.reach() as redis, redis.pipeline(transaction=False) as pipe:
            for stream_id, edge_id in edges:
                names = [f"{fate}:{edge_id}" for fate in ("received", "used", "dropped")]
                pipe.hmget(self._keys.tally(stream_id), names)
            replies = await pipe.execute()
        return [Tally(*(int(value or 0) for value in values)) for values in replies]

    async def forget_edge(self, stream_id: str, edge_id: str) -> None:
        """Drop the samples of an edge that wait, and its counts."""
        mine = [each for each in await self.ids(stream_id) if each.startswith(f"{edge_id}/")]
        await self.drop(stream_id, mine)
        names = [f"{count}:{edge_id}" for count in ("received", "used", "dropped", "bytes")]
        async with self._link.reach() as redis:
            await redis.hdel(self._keys.tally(stream_id), *names)

    @asynccontextmanager
    async def lease(self, stream_id: str) -> AsyncIterator[bool]:
        """Be the one worker that learns from a stream's samples, if no other does.

        It saves double work and no more: which work counts is decided by the commit.
        """
        key, mine = self._keys.lease(stream_id), secrets.token_hex(8)
        async with self._link.reach() as redis:
            leased = bool(await redis.set(key, mine, nx=True, px=int(LEASE_S * 1000)))
        if not leased:
            yield False
            return
        try:
            yield True
        finally:
            async with self._link.reach() as redis:
                if await redis.get(key) == mine.encode():
                    await redis.delete(key)

    async def renew(self, stream_id: str) -> None:
        """Hold the lease for longer."""
        async with self._link.reach() as redis:
            await redis.pexpire(self._keys.lease(stream_id), int(LEASE_S * 1000))
