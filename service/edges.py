"""What can be done with edges: the service's use cases, between the routes and the store."""

import asyncio
import hmac
import re
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from anyio import CapacityLimiter, to_thread

from normstream.adaptation import Recipe
from normstream.service import updates
from normstream.service.edge_schemas import TAG, Accepted, Edge
from normstream.service.engine import Engine
from normstream.service.errors import Conflict, Forbidden, Problem, Unavailable, invalid
from normstream.service.models import available_cores
from normstream.service.packages import Packages
from normstream.service.releases import Releases, tag_of
from normstream.service.storage.records import EdgeRecord, StreamSummary, UnknownEdge, UnknownStream
from normstream.service.streams import Streams
from normstream.service.updates import Precision
from normstream.service.uploads import Upload, check


@dataclass(frozen=True, slots=True)
class SignedUpdate:
    """A version of an edge's parameters, ready to go."""

    tag: str
    body: bytes = field(repr=False)
    signature: str


class Edges:
    """The registered edges. Every method may raise a `Problem` or a `StoreError`.

    Attributes:
        arrival: Set when samples have come, for who learns from them.
    """

    def __init__(self, streams: Streams, packages: Packages) -> None:
        self.arrival = asyncio.Event()
        self._streams = streams
        self._store = streams.store
        self._packages = packages
        self._releases = Releases(streams.store)
        self._decoders = CapacityLimiter(available_cores())
        self._waiting: dict[str, asyncio.Timeout] = {}  # by edge

    async def register(
        self, edge_id: str | None, key: str | None, model: str | None, recipe: Recipe, group: str | None
    ) -> tuple[EdgeRecord, StreamSummary, bool]:
        """Register an edge, or find it if it is there with the same key, model, recipe and group.

        Returns:
            The edge, its stream, and whether it is new.
        """
        if recipe.learn is not None:
            raise invalid(
                "body.recipe.learn",
                "edges follow the norm layers' parameters alone, and a stream that learns from labels has a head of its"
                " own besides; leave learn out",
            )
        edge_id = edge_id or secrets.token_hex(8)
        wanted = EdgeRecord(
            id=edge_id,
            key=key or secrets.token_urlsafe(32),
            model=model or self._streams.models.default,
            recipe=recipe.canonical(),
            group=group,
            stream=f"edge-{edge_id}" if group is None else f"group-{group}",
            created_at=time.time(),
        )
        with suppress(UnknownEdge):
            return *await self._same(await self._store.edges.get(edge_id), wanted), False
        self._streams.admit(recipe)
        await self._streams.initial(wanted.model, recipe)  # Refused, if it must be, before the long work.
        await self._packages.of(self._streams.models[wanted.model])
        await self._streams.create(wanted.stream, wanted.model, recipe, None)
        found, made = await self._store.edges.put(wanted)
        return *await self._same(found, wanted), made

    async def _same(self, found: EdgeRecord, wanted: EdgeRecord) -> tuple[EdgeRecord, StreamSummary]:
        ours = (found.key, found.model, found.recipe, found.group)
        theirs = (wanted.key, wanted.model, wanted.recipe, wanted.group)
        if not hmac.compare_digest(repr(ours).encode(), repr(theirs).encode()):
            raise Conflict(
                f"Edge {found.id!r} is registered with another key, model, recipe or group."
                " Choose another id, or delete it first."
            )
        return found, await self._stream(found)

    async def authenticated(self, edge_id: str, key: str) -> EdgeRecord:
        """The edge whose key it is.

        Raises:
            UnknownEdge: when there is none of that id.
            Forbidden: when it has another key.
        """
        record = await self._store.edges.get(edge_id)
        if not hmac.compare_digest(record.key.encode(), key.encode()):
            raise Forbidden(f"Edge {edge_id!r} has another key.")
        return record

    async def show(self, edge_id: str) -> Edge:
        """One edge, without its key."""
        (shown,) = await self._shown([await self._store.edges.get(edge_id)])
        return shown

    async def page(self, limit: int, after: str | None) -> tuple[list[Edge], str | None]:
        """A page of the edges in order of id, and what to give as `after` for the next, if there is one."""
        records, following = await self._store.edges.page(limit, after)
        return await self._shown(records), following

    async def _shown(self, records: Sequence[EdgeRecord]) -> list[Edge]:
        streams = await self._store.summaries({record.stream for record in records})
        tallies = await self._store.samples.tally([(record.stream, record.id) for record in records])
        now = time.time()
        return [
            Edge.of(record, streams.get(record.stream), tally, now)
            for record, tally in zip(records, tallies, strict=True)
        ]

    async def delete(self, edge_id: str) -> None:
        """Forget an edge and its samples that wait; with the last of its stream the stream goes too."""
        record, last = await self._store.edges.delete(edge_id)
        if last:
            with suppress(UnknownStream):
                await self._streams.delete(record.stream)
        else:
            await self._store.samples.forget_edge(record.stream, edge_id)

    async def upload(self, edge: EdgeRecord, upload: Upload) -> Accepted:
        """Take samples in, all or none, and what the edge tells of itself."""
        engine = self._engine(edge)
        if upload.samples and Recipe.parse(edge.recipe).teacher is None:
            raise invalid(
                "images",
                f"edge {edge.id!r} has a recipe without a teacher, which learns from predict requests and not from"
                " uploaded samples",
            )
        await to_thread.run_sync(check, upload.samples, engine.hosted.preprocessing, limiter=self._decoders)
        stream = await self._stream(edge)
        now = time.time()
        taken_at = upload.report.taken_at if upload.report else {}
        samples = [
            # An edge's clock may be wrong: nothing was taken after it came.
            (sample_id, image, min(taken_at.get(sample_id, now), now))
            for sample_id, image in upload.samples
        ]
        await self._store.edges.note(edge.id, _heard(upload, stream, now), bytes_up=upload.size)
        added = await self._store.samples.add(stream.id, edge.id, samples, shared=edge.group is not None)
        if added.accepted:
            self.arrival.set()
        return Accepted(accepted=added.accepted, duplicates=len(samples) - added.accepted, pending=added.pending)

    async def update(
        self, edge: EdgeRecord, since: str | None, precision: Precision, wait_s: float
    ) -> SignedUpdate | None:
        """What an edge that runs the version `since` needs to run the newest; None when it does, after a wait.

        Raises:
            Conflict: when the stream was taught with other weights than those that are hosted.
        """
        known = {"acknowledged": since} if since is not None and re.fullmatch(TAG, since) else {}
        await self._store.edges.note(edge.id, known | {"last_seen": time.time()})  # Whatever the answer will be.
        self._engine(edge)  # Of a model that is away there will be no news.
        stream = await self._newer(edge, since, wait_s)
        engine = self._streams.models.of_stream(stream.id, stream.model, stream.fingerprint)
        if tag_of(stream) == since:
            now = time.time()
            await self._store.edges.note(edge.id, {"last_seen": now, "current_at": now})
            return None
        package = await self._packages.of(engine)
        release = await self._releases.newest(stream, engine, package, precision)
        base = await self._releases.kept(stream.id, precision, since) if since else None
        body = await to_thread.run_sync(
            lambda: updates.body(
                release, base, edge=edge.id, model=engine.hosted.name, fingerprint=engine.hosted.fingerprint
            ),
            limiter=self._decoders,
        )
        await self._store.edges.note(edge.id, {"last_seen": time.time()}, bytes_down=len(body))
        return SignedUpdate(release.tag, body, updates.signature(edge.key, body))

    async def _newer(self, edge: EdgeRecord, since: str | None, wait_s: float) -> StreamSummary:
        """The edge's stream, as soon as its version is another than `since`, or when the time is over."""
        stream = await self._stream(edge)
        if tag_of(stream) != since or wait_s <= 0:
            return stream
        # They begin before the stream is looked at again: nothing that happens in between is missed.
        events = await self._store.events(stream.id)
        async with aclosing(events):
            with suppress(TimeoutError):
                async with self._patience(edge.id, wait_s):
                    while tag_of(stream := await self._stream(edge)) == since:
                        await anext(events, None)
        return stream

    @asynccontextmanager
    async def _patience(self, edge_id: str, wait_s: float) -> AsyncIterator[None]:
        """The time that an edge's question may wait, which ends when the edge asks again: one waits for each edge.

        Each holds a connection to the store, of which the questions of one edge must not take those of others.
        """
        older = self._waiting.get(edge_id)
        if older is not None and not older.expired():
            older.reschedule(0.0)
        async with asyncio.timeout(wait_s) as patience:
            self._waiting[edge_id] = patience
            try:
                yield
            finally:
                if self._waiting.get(edge_id) is patience:
                    del self._waiting[edge_id]

    async def _stream(self, edge: EdgeRecord) -> StreamSummary:
        """The edge's stream, made anew if it was deleted."""
        with suppress(UnknownStream):
            return await self._store.peek(edge.stream)
        await self._streams.create(edge.stream, edge.model, Recipe.parse(edge.recipe), None)
        return await self._store.peek(edge.stream)

    def _engine(self, edge: EdgeRecord) -> Engine:
        """The engine of the edge's model, which may not be hosted at the moment: the edge is to come back."""
        try:
            return self._streams.models[edge.model]
        except Problem as problem:
            raise Unavailable(problem.detail, retry_after_s=60) from None


def _heard(upload: Upload, stream: StreamSummary, now: float) -> dict[str, Any]:
    """What an upload tells of its edge, as fields of its record."""
    heard: dict[str, Any] = {"last_seen": now}
    # An edge whose report was refused sends when samples were taken and no more: what it told before stays.
    if upload.report is not None and upload.report.model_fields_set - {"taken_at"}:
        heard["report"] = upload.report.model_dump_json(exclude={"taken_at"})
        if upload.report.tag is not None:
            heard["acknowledged"] = upload.report.tag
            if upload.report.tag == tag_of(stream):
                heard["current_at"] = now
    return heard
