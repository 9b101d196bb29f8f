"""The client for asyncio: the same calls as `client`, awaited."""
# ruff: noqa: A002 - the API calls it `id`

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, suppress
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from normstream.clients import calls
from normstream.clients.answers import Methods, Model, Models, Prediction, Recipes, Snapshot, Stream, StreamEvent
from normstream.clients.call import Call, Outcome, settle
from normstream.clients.calls import Output, Recipe
from normstream.clients.client import QUIET_S, parts, server_url
from normstream.clients.edge_answers import Edge
from normstream.clients.errors import ConnectionFailed, TimedOut, Unavailable
from normstream.clients.events import EventFeed
from normstream.clients.images import Images
from normstream.clients.label_answers import Labelling, StreamLabels
from normstream.clients.labels import Class, Labels, of_images
from normstream.clients.retry import Retry

T = TypeVar("T")


class AsyncClient:
    """A client of a Normstream server for asyncio; `Client` describes the arguments and the methods.

    Example:
        >>> async with AsyncClient() as client:  # doctest: +SKIP
        ...     await client.create_stream("gate-3")
        ...     prediction = await client.predict("gate-3", ["zebra.jpg"])
    """

    def __init__(
        self,
        base_url: str | None = None,
        timeout_s: float = 30.0,
        retries: int = 4,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._http = httpx.AsyncClient(base_url=server_url(base_url), timeout=timeout_s, transport=transport)
        self._events_timeout = httpx.Timeout(timeout_s, read=QUIET_S)
        self._retry = Retry(retries)

    async def __aenter__(self) -> Self:
        await self._http.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def send(self, call: Call[T]) -> T:
        """Send a call, again if need be, and return its answer.

        Raises:
            NormstreamError: The server refused it or could not be reached; `errors` draws the tree.
        """
        for attempt in itertools.count():
            outcome = await self._attempt(call)
            pause_s = self._retry.pause_s(call, outcome, attempt)
            if pause_s is None:
                break
            await asyncio.sleep(pause_s)
        answer = settle(call, outcome, repeated=attempt > 0)
        return await self.send(answer) if isinstance(answer, Call) else answer

    async def _attempt(self, call: Call[Any]) -> Outcome:
        try:
            return await self._http.request(**parts(call))
        except httpx.RequestError as error:
            return error

    async def ready(self) -> bool:
        """Return whether the server can be reached and can serve."""
        with suppress(ConnectionFailed, TimedOut, Unavailable):
            return await self.send(calls.ready())
        return False

    async def models(self) -> Models:
        """List the hosted models."""
        return await self.send(calls.models())

    async def model(self, name: str) -> Model:
        """Look at one model."""
        return await self.send(calls.model(name))

    async def recipes(self) -> Recipes:
        """List the named recipes, with the schema of recipes."""
        return await self.send(calls.recipes())

    async def methods(self) -> Methods:
        """List the members that recipes are made of, with the parameters they take."""
        return await self.send(calls.methods())

    async def create_stream(
        self,
        id: str | None = None,
        *,
        model: str | None = None,
        recipe: Recipe = "alpha_bn",
        idle_ttl_s: float | None = None,
    ) -> Stream:
        """Create a stream, or return it when it exists with the same model and recipe."""
        return await self.send(calls.create_stream(id, model=model, recipe=recipe, idle_ttl_s=idle_ttl_s))

    async def streams(self) -> AsyncIterator[Stream]:
        """Iterate over all streams in order of id, page by page."""
        after: str | None = None
        while True:
            page = await self.send(calls.streams(after))
            for stream in page.streams:
                yield stream
            if (after := page.next) is None:
                return

    async def stream(self, id: str) -> Stream:
        """Look at one stream."""
        return await self.send(calls.stream(id))

    async def delete_stream(self, id: str) -> None:
        """Delete a stream."""
        await self.send(calls.delete_stream(id))

    async def predict(
        self,
        id: str,
        images: Images,
        *,
        adapt: bool = True,
        top_k: int = 5,
        output: Output = "topk",
        idempotency_key: str | None = None,
    ) -> Prediction:
        """Predict images; the stream adapts to them. Files are read in a thread."""
        call = await asyncio.to_thread(
            calls.predict,
            id,
            images,
            adapt=adapt,
            top_k=top_k,
            output=output,
            idempotency_key=idempotency_key,
        )
        return await self.send(call)

    async def label(
        self, id: str, labels: Labels, *, learn: bool = True, idempotency_key: str | None = None
    ) -> Labelling:
        """Say what images show; the stream may learn from it. Files are read in a thread."""
        call = await asyncio.to_thread(calls.label, id, labels, learn=learn, idempotency_key=idempotency_key)
        return await self.send(call)

    async def label_images(
        self,
        id: str,
        images: Images,
        classes: Sequence[Class],
        *,
        learn: bool = True,
        idempotency_key: str | None = None,
    ) -> Labelling:
        """Show images together with what they show."""
        return await self.label(id, of_images(images, classes), learn=learn, idempotency_key=idempotency_key)

    async def scores(self, id: str) -> StreamLabels:
        """Look at how a stream has done by the labels that came, and at what it has learnt."""
        return await self.send(calls.scores(id))

    async def reset(self, id: str) -> Stream:
        """Put a stream back to the source state."""
        return await self.send(calls.reset(id))

    async def snapshot(self, id: str) -> Snapshot:
        """Keep a copy of a stream's state. Not repeated once it may have reached the server."""
        return await self.send(calls.snapshot(id))

    async def snapshots(self, id: str) -> tuple[Snapshot, ...]:
        """List a stream's snapshots, newest first."""
        return await self.send(calls.snapshots(id))

    async def download_snapshot(self, sid: str) -> bytes:
        """Download a snapshot (safetensors)."""
        return await self.send(calls.download_snapshot(sid))

    async def upload_snapshot(self, sid: str, content: bytes) -> Snapshot:
        """Upload a snapshot under an id."""
        return await self.send(calls.upload_snapshot(sid, content))

    async def delete_snapshot(self, sid: str) -> None:
        """Delete a snapshot."""
        await self.send(calls.delete_snapshot(sid))

    async def restore(self, id: str, sid: str) -> Stream:
        """Put a stream's state back to a snapshot."""
        return await self.send(calls.restore(id, sid))

    async def fork(self, id: str, new_id: str | None = None) -> Stream:
        """Copy a stream's state to a new stream, whose id is made up when None."""
        return await self.send(calls.fork(id, new_id))

    async def edges(self) -> AsyncIterator[Edge]:
        """Iterate over all edges in order of id, page by page."""
        after: str | None = None
        while True:
            page = await self.send(calls.edges(after))
            for edge in page.edges:
                yield edge
            if (after := page.next) is None:
                return

    async def edge(self, id: str) -> Edge:
        """Look at one edge."""
        return await self.send(calls.edge(id))

    async def delete_edge(self, id: str) -> None:
        """Forget an edge; with the last of its stream the stream goes too."""
        await self.send(calls.delete_edge(id))

    async def events(self, id: str, last_event_id: str | None = None) -> AsyncGenerator[StreamEvent]:
        """Iterate over a stream's events until it is deleted, connecting again where they break off.

        Leave a loop over them early only within `contextlib.aclosing`, which closes the connection.
        """
        feed = EventFeed(id, self._retry, last_event_id)
        while not feed.ended:
            async with aclosing(self._connection(feed)) as events:
                async for event in events:
                    yield event
            await asyncio.sleep(feed.pause_s())

    async def _connection(self, feed: EventFeed) -> AsyncGenerator[StreamEvent]:
        """Yield the events of one connection, and leave with the feed what came of it."""
        try:
            async with self._http.stream(**parts(feed.call()), timeout=self._events_timeout) as response:
                feed.outcome = response
                if not response.is_success:
                    await response.aread()
                    return
                feed.open(response)
                async for chunk in response.aiter_bytes():
                    for event in feed.read(chunk):
                        yield event
                    if feed.ended:
                        return
        except httpx.RequestError as error:
            feed.outcome = error
