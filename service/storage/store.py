"""The home of all streams: one Redis, which any number of workers share.

A worker loads a stream, computes, and commits; the commit holds only if nobody else has committed since, and
writes state, version, idempotency record, events and labels in one atomic step. States are opaque bytes. What a stream
has learnt from labels may be large: it is put down in pieces before the commit, which makes them the stream's.
"""

import json
import math
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import replace
from itertools import chain
from typing import Any

from redis.asyncio import Redis

from normstream.service.storage.blob_shelf import Blob, BlobShelf
from normstream.service.storage.edge_shelf import EdgeShelf
from normstream.service.storage.event_log import EventLog
from normstream.service.storage.keyspace import Keyspace
from normstream.service.storage.record_cache import RecordCache
from normstream.service.storage.records import (
    Conflict,
    Event,
    Labelled,
    LoggedEvent,
    Replay,
    SnapshotRecord,
    SnapshotSummary,
    StoreUnavailable,
    StreamExists,
    StreamRecord,
    StreamSummary,
    UnknownStream,
    Unlabelled,
    field_names,
    from_fields,
    to_fields,
)
from normstream.service.storage.redis_link import TIMEOUT_S, RedisLink, owned
from normstream.service.storage.release_shelf import ReleaseShelf
from normstream.service.storage.sample_queue import SampleQueue
from normstream.service.storage.snapshot_shelf import SnapshotShelf
from normstream.service.storage.stream_index import StreamIndex
from normstream.service.storage.unlabelled_shelf import UnlabelledShelf

DELETED_EVENTS_TTL_S = 60.0
READ_ON_S = 5.0  # what was learnt before, for those who are reading it


class Store:
    """Streams and snapshots in Redis; every method may raise `StoreUnavailable`, soon after an exchange was too long.

    Args:
        redis: A client as `redis_link.connect` makes it; the store closes it.
        clock: Gives the unix time in seconds.
        prefix: What all keys begin with.
        timeout_s: The longest that one exchange with Redis may take; what is large takes several.
        idempotency_ttl_s: How long an answer is kept for the same request to come again.
        events_kept: About how many events of a stream a late reader can still get.
        events_poll_s: How long a watcher may take to notice that its stream expired.
        cache_bytes: How much state this worker keeps at hand.
        max_samples: How many samples of a stream may wait to be learnt from.
        max_sample_bytes: The size of their images.
        label_ttl_s: How long a prediction is kept for its label to come, and then the label; 0 keeps none.
        max_unlabelled: How many of these a stream has; the oldest go first.
        max_unlabelled_bytes: Their size.

    Attributes:
        edges: The registered edges.
        samples: What edges sent to be learnt from.
        releases: What edges were sent.
    """

    def __init__(
        self,
        redis: Redis,
        *,
        clock: Callable[[], float] = time.time,
        prefix: str = "normstream",
        timeout_s: float = TIMEOUT_S,
        idempotency_ttl_s: float = 600.0,
        events_kept: int = 256,
        events_poll_s: float = 5.0,
        cache_bytes: int = 256 * 1024 * 1024,
        max_samples: int = 512,
        max_sample_bytes: int = 32 * 1024 * 1024,
        label_ttl_s: float = 3600.0,
        max_unlabelled: int = 4096,
        max_unlabelled_bytes: int = 32 * 1024 * 1024,
    ) -> None:
        self._clock = clock
        self._replay_ttl_ms = _ms(idempotency_ttl_s)
        self._events_kept = events_kept
        self._keys = Keyspace(prefix)
        self._cache = RecordCache(cache_bytes)
        self._link = RedisLink(redis, timeout_s)
        self._readers = self._link.for_readers()
        self._event_log = EventLog(self._readers, self._keys, events_poll_s)
        self._index = StreamIndex(self._link, self._keys)
        self._shelf = SnapshotShelf(self._link, self._keys)
        self._blobs = BlobShelf(self._link, "learnt_tag")
        self._unlabelled = UnlabelledShelf(
            self._link,
            self._keys,
            clock,
            ttl_s=label_ttl_s,
            most=max_unlabelled,
            most_bytes=max_unlabelled_bytes,
        )
        self.edges = EdgeShelf(self._link, self._keys)
        self.samples = SampleQueue(
            self._link,
            self._keys,
            clock,
            max_samples=max_samples,
            max_bytes=max_sample_bytes,
            events_kept=events_kept,
        )
        self.releases = ReleaseShelf(self._link, self._keys)
        self._create = self._link.script("create")
        self._load = self._link.script("load")
        self._commit = self._link.script("samples", "order", "unlabelled", "commit")
        self._remember = self._link.script("order", "unlabelled", "remember")
        self._delete = self._link.script("delete")

    async def check(self) -> list[str]:
        """Make sure that Redis answers.

        Returns:
            What about this Redis endangers the streams, in words for its operator.
        """
        return await self._link.check()

    async def create(
        self,
        stream_id: str,
        *,
        model: str,
        fingerprint: str,
        recipe: str,
        state: bytes,
        learnt: bytes = b"",
        step: int = 0,
        idle_ttl_s: float | None = None,
    ) -> tuple[StreamRecord, bool]:
        """Make a stream, unless it is there.

        Args:
            stream_id: Its id.
            model: The name of the model that it is of.
            fingerprint: That model's.
            recipe: As canonical JSON.
            state: Its state, but for what it has learnt.
            learnt: What it has learnt from labels; empty where that is nothing.
            step: Its step.
            idle_ttl_s: How long it lives unused; None is for ever.

        Returns:
            The stream made or found, and whether it was made.
        """
        if learnt:  # It may be large: let it not travel for nothing.
            with suppress(UnknownStream):
                return (await self.load(stream_id))[0], False
        async with self.staged(stream_id, learnt) as blob:
            now = self._clock()
            record = StreamRecord(
                id=stream_id,
                model=model,
                fingerprint=fingerprint,
                recipe=recipe,
                generation=secrets.token_hex(4),
                version=1,
                step=step,
                created_at=now,
                updated_at=now,
                moved_at=now,
                idle_ttl_s=idle_ttl_s,
                state=state,
                learnt_tag=blob.tag,
                learnt_bytes=blob.size,
            )
            return await self._create_or_find(record, blob)

    async def _create_or_find(self, new: StreamRecord, learnt: Blob) -> tuple[StreamRecord, bool]:
        stream = self._keys.stream(new.id)
        keys = [stream, self._keys.events(new.id), learnt.key(stream), *self._keys.unlabelled(new.id)]
        args = [_ttl_ms(new), new.state_bytes, learnt.pieces, *chain.from_iterable(to_fields(new).items())]
        async with self._link.reach() as redis, redis.pipeline(transaction=False) as pipe:
            await self._create(keys, args, client=pipe)
            pipe.zadd(self._keys.index, {new.id: 0})
            found, _ = await pipe.execute()
        if found == b"incomplete":
            raise _lost(new.id)
        record = self._admit(new.id, from_fields(StreamRecord, found) if found else new)
        # A client that lost the reply sends the command again, and finds what it made itself.
        return record, record.generation == new.generation

    async def load(self, stream_id: str, idempotency_key: str | None = None) -> tuple[StreamRecord, Replay | None]:
        """Read a stream in one round trip, in which a state travels only if it changed; counts as use.

        Returns:
            The stream, and the answer that was given under the idempotency key, if any.

        Raises:
            UnknownStream: There is no such stream.
        """
        cached = self._cache.get(stream_id)
        known = [cached.generation, cached.version, cached.updated_at] if cached else [""] * 3
        async with self._link.reach():
            reply = await self._load(
                self._stream_keys(stream_id, idempotency_key), [*known, *field_names(StreamRecord)]
            )
        if reply is None:
            self._cache.drop(stream_id)
            raise UnknownStream(stream_id)
        fields, replay = reply
        if fields is not None:
            record = self._admit(stream_id, from_fields(StreamRecord, fields))
        else:
            assert cached is not None  # noqa: S101  (to a worker that has none, Redis sends the fields)
            record = cached
        return record, Replay(replay[0].decode(), replay[1]) if replay else None

    def staged(self, stream_id: str, learnt: bytes) -> AbstractAsyncContextManager[Blob]:
        """What a stream has learnt, put down for a commit within the block; what is not committed is gone after it."""
        return self._blobs.staged(self._keys.stream(stream_id), learnt)

    async def learnt(self, record: StreamRecord) -> bytes:
        """What a stream has learnt, as of this record.

        Raises:
            Conflict: It has learnt more or was deleted since, and what it had learnt is gone.
            Incomplete: Redis lost a part of it.
        """
        blob = Blob(record.learnt_tag, record.learnt_bytes)
        data = await self._blobs.read(self._keys.stream(record.id), blob, f"what stream '{record.id}' has learnt")
        if data is None:
            raise Conflict(record.id)
        return data

    def _admit(self, stream_id: str, record: StreamRecord) -> StreamRecord:
        owned("stream", stream_id, record.id)
        self._cache.put(record)
        return record

    async def peek(self, stream_id: str) -> StreamSummary:
        """What is known of a stream, without its state; does not count as use.

        Raises:
            UnknownStream: There is no such stream.
        """
        summaries = await self.summaries([stream_id])
        if stream_id not in summaries:
            raise UnknownStream(stream_id)
        return summaries[stream_id]

    async def summaries(self, ids: Iterable[str]) -> dict[str, StreamSummary]:
        """What is known of those of the streams that are there, by id."""
        return await self._index.summaries(ids)

    async def streams(self, limit: int = 100, after: str | None = None) -> tuple[list[StreamSummary], str | None]:
        """A page of streams in order of id.

        Returns:
            The streams after the id `after`, and what to give as `after` for the next page, if there is one.
        """
        return await self._index.page(limit, after)

    async def commit(
        self,
        record: StreamRecord,
        *,
        state: bytes | None,
        step: int,
        learnt: Blob | None = None,
        scores: bytes | None = None,
        events: Sequence[Event] = (),
        replay: tuple[str, Replay] | None = None,
        used: Sequence[str] = (),
        dropped: Sequence[str] = (),
        predicted: Sequence[Unlabelled] = (),
        labelled: Sequence[tuple[str, str]] = (),
        forget_unlabelled: bool = False,
    ) -> StreamRecord:
        """Put a new state in place of the one that was loaded.

        Args:
            record: The stream as loaded.
            state: Its new state, but for what it has learnt; None leaves that as it is, as with `learnt` and `scores`.
            step: Its new step.
            learnt: What it has learnt now, which is `staged`.
            scores: How its predictions compare with labels now.
            events: What to tell those who watch it, in order.
            replay: An idempotency key, and the answer to keep under it.
            used: The ids of samples that the state has learnt from; they leave the queue.
            dropped: The ids of others that leave it.
            predicted: Predictions to keep until their labels come.
            labelled: The ids of images whose labels came, predicted before or not, with these labels.
            forget_unlabelled: Whether to forget the predictions and labels that are kept, but for those given here.

        Returns:
            The stream as it is now.

        Raises:
            Conflict: The stream was changed since it was loaded; nothing was written.
            UnknownStream: The stream was deleted since it was loaded.
        """
        now = self._clock()
        changes: dict[str, Any] = {"step": step, "version": record.version + 1, "updated_at": now}
        changes |= {} if state is None else {"state": state}
        changes |= {} if learnt is None else {"learnt_tag": learnt.tag, "learnt_bytes": learnt.size}
        changes |= {} if scores is None else {"scores": scores}
        changes |= {"unmoved": record.unmoved + 1} if state is None and learnt is None else {"moved_at": now}
        new = replace(record, **changes)
        fields = {**changes, "state_bytes": new.state_bytes}
        key, answer = replay or (None, None)
        unlabelled, values = self._unlabelled.command(predicted, labelled)
        asked = {
            "generation": record.generation,
            "version": str(record.version),
            "updated_at": str(record.updated_at),
            "learnt_tag": record.learnt_tag,
            "learnt_pieces": None if learnt is None else learnt.pieces,
            "read_on_ms": _ms(READ_ON_S),
            "operation": secrets.token_hex(8),
            "idle_ttl_ms": str(_ttl_ms(record)),
            "now": str(now),
            "fields": len(fields),
            "events": len(events),
            "events_kept": self._events_kept,
            "replay": self._kept(answer),
            "used": used,
            "dropped": dropped,
            "unlabelled": unlabelled,
            "forget_unlabelled": forget_unlabelled,
        }
        args = [_as_json(asked), *chain.from_iterable(fields.items())]
        args += chain.from_iterable((event.type, event.data) for event in events)
        args += [answer.answer if answer else b"", *values]
        keys = [*self._stream_keys(record.id, key), *self._keys.unlabelled(record.id), *self._keys.samples(record.id)]
        keys += [Blob(tag).key(keys[0]) for tag in (new.learnt_tag, record.learnt_tag)]
        async with self._link.reach():
            outcome = await self._commit(keys, args)
        if outcome != b"done":
            self._cache.drop(record.id)
            if outcome == b"incomplete":
                raise _lost(record.id)
            raise UnknownStream(record.id) if outcome == b"unknown" else Conflict(record.id)
        self._cache.put(new)
        return new

    async def remember(
        self,
        record: StreamRecord,
        idempotency_key: str | None,
        replay: Replay | None,
        predicted: Sequence[Unlabelled] = (),
    ) -> None:
        """Keep what came of a request that changed nothing.

        Args:
            record: The stream.
            idempotency_key: The request's, if it has one, under which it may come again.
            replay: The answer to it then.
            predicted: Predictions to keep until their labels come.
        """
        answer = replay if idempotency_key is not None else None
        unlabelled, values = self._unlabelled.command(predicted, ())
        if answer is None and unlabelled is None:
            return
        asked = {"generation": record.generation, "replay": self._kept(answer), "unlabelled": unlabelled}
        args = [_as_json(asked), answer.answer if answer else b"", *values]
        keys = [*self._stream_keys(record.id, idempotency_key), *self._keys.unlabelled(record.id)]
        async with self._link.reach():
            await self._remember(keys, args)

    async def unlabelled(self, stream_id: str, ids: Sequence[str]) -> dict[str, Unlabelled | Labelled]:
        """The predictions of a stream whose labels may still come, and the labels of those for which they came.

        Args:
            stream_id: The stream.
            ids: Those of the images; the unknown and the expired are left out of the answer.
        """
        return await self._unlabelled.find(stream_id, ids)

    async def delete(self, stream_id: str) -> None:
        """Delete a stream with the samples and predictions that wait for it; its snapshots stay.

        Its idempotency records stay too, and mean nothing to a successor.

        Raises:
            UnknownStream: There is no such stream.
        """
        self._cache.drop(stream_id)
        keys = [self._keys.stream(stream_id), self._keys.events(stream_id), *self._keys.samples(stream_id)]
        keys += [self._keys.known(stream_id), self._keys.releases(stream_id), *self._keys.unlabelled(stream_id)]
        async with self._link.reach():
            deleted = await self._delete(keys, [_ms(DELETED_EVENTS_TTL_S)])
        await self._index.drop_gone([stream_id])
        if not deleted:
            raise UnknownStream(stream_id)

    async def fork(self, stream_id: str, new_id: str) -> StreamRecord:
        """Make a stream of another id with a copy of the state; it begins without scores and labels.

        Raises:
            UnknownStream: There is no stream to copy.
            StreamExists: The new id is taken.
            Conflict: It has learnt meanwhile.
            Incomplete: Redis lost a part of what it has learnt.
        """
        source, _ = await self.load(stream_id)
        record, made = await self.create(
            new_id,
            model=source.model,
            fingerprint=source.fingerprint,
            recipe=source.recipe,
            state=source.state,
            learnt=await self.learnt(source),
            step=source.step,
            idle_ttl_s=source.idle_ttl_s,
        )
        if not made:
            raise StreamExists(new_id)
        return record

    async def events(self, stream_id: str, after: str | None = None) -> AsyncGenerator[LoggedEvent, None]:
        """Watch a stream, from now on or after an event; the events end with one of type `deleted`.

        Raises:
            UnknownStream: There is no such stream.
            ValueError: `after` is no event id.
        """
        return await self._event_log.follow(stream_id, after)

    async def put_snapshot(self, record: SnapshotRecord) -> bool:
        """Keep a snapshot; False when there is one of its id already, which stays as it is."""
        return await self._shelf.put(record)

    async def snapshot(self, snapshot_id: str) -> SnapshotRecord:
        """A snapshot with its state; raises `UnknownSnapshot`."""
        return await self._shelf.get(snapshot_id)

    async def snapshots(self, stream_id: str) -> list[SnapshotSummary]:
        """The snapshots of a stream, newest first; they outlive it."""
        return await self._shelf.of_stream(stream_id)

    async def delete_snapshot(self, snapshot_id: str) -> None:
        """Drop a snapshot; raises `UnknownSnapshot`."""
        await self._shelf.delete(snapshot_id)

    async def aclose(self) -> None:
        """Close the connections to Redis."""
        await self._readers.aclose()
        await self._link.aclose()

    def _kept(self, answer: Replay | None) -> dict[str, Any] | None:
        return None if answer is None else {"digest": answer.digest, "ttl_ms": self._replay_ttl_ms}

    def _stream_keys(self, stream_id: str, idempotency_key: str | None) -> list[str]:
        keys = self._keys
        return [keys.stream(stream_id), keys.events(stream_id), keys.replay(stream_id, idempotency_key or "")]


def _lost(stream_id: str) -> StoreUnavailable:
    return StoreUnavailable(f"Redis lost a part of what stream '{stream_id}' is to have learnt; nothing was written.")


def _as_json(asked: dict[str, Any]) -> str:
    """What a script is asked for; what is None stays out, for to Lua a null of JSON is true."""
    return json.dumps({name: value for name, value in asked.items() if value is not None})


def _ttl_ms(record: StreamRecord) -> int | str:
    return "" if record.idle_ttl_s is None else _ms(record.idle_ttl_s)


def _ms(seconds: float) -> int:
    return math.ceil(seconds * 1000)
