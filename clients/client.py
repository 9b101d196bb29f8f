"""The client: each method sends one call of `calls`."""
# ruff: noqa: A002 - the API calls it `id`

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from normstream.clients import calls
from normstream.clients.answers import Methods, Model, Models, Prediction, Recipes, Snapshot, Stream, StreamEvent
from normstream.clients.call import Call, Outcome, settle
from normstream.clients.calls import Output, Recipe
from normstream.clients.edge_answers import Edge
from normstream.clients.errors import ConnectionFailed, InvalidArgument, TimedOut, Unavailable
from normstream.clients.events import EventFeed
from normstream.clients.images import Images
from normstream.clients.label_answers import Labelling, StreamLabels
from normstream.clients.labels import Class, Labels, of_images
from normstream.clients.retry import Retry

T = TypeVar("T")

DEFAULT_URL = "http://127.0.0.1:8000"
QUIET_S = 60.0  # a connection for events that is silent for longer is made anew


class Client:
    """A client of a Normstream server.

    Failed calls are sent again, with growing pauses, wherever that is safe; see `calls.Repeat`. Each predict call
    carries an idempotency key, so that a stream adapts to its images once.

    Args:
        base_url: The server; by default `$NORMSTREAM_URL`, else http://127.0.0.1:8000.
        timeout_s: How long to wait for a connection, and for each part of an answer.
        retries: How often a failed call is sent again at most.
        transport: What carries the requests in place of the network.

    Example:
        >>> with Client() as client:  # doctest: +SKIP
        ...     client.create_stream("gate-3", recipe="alpha_bn")
        ...     client.predict("gate-3", ["zebra.jpg"]).predictions[0].top[0].label
        'zebra'
    """

    def __init__(
        self,
        base_url: str | None = None,
        timeout_s: float = 30.0,
        retries: int = 4,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._http = httpx.Client(base_url=server_url(base_url), timeout=timeout_s, transport=transport)
        self._events_timeout = httpx.Timeout(timeout_s, read=QUIET_S)
        self._retry = Retry(retries)

    def __enter__(self) -> Self:
        self._http.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def send(self, call: Call[T]) -> T:
        """Send a call, again if need be, and return its answer.

        Raises:
            NormstreamError: The server refused it or could not be reached; `errors` draws the tree.
        """
        for attempt in itertools.count():
            outcome = self._attempt(call)
            pause_s = self._retry.pause_s(call, outcome, attempt)
            if pause_s is None:
                break
            time.sleep(pause_s)
        answer = settle(call, outcome, repeated=attempt > 0)
        return self.send(answer) if isinstance(answer, Call) else answer

    def _attempt(self, call: Call[Any]) -> Outcome:
        try:
            return self._http.request(**parts(call))
        except httpx.RequestError as error:
            return error

    def ready(self) -> bool:
        """Return whether the server can be reached and can serve."""
        with suppress(ConnectionFailed, TimedOut, Unavailable):
            return self.send(calls.ready())
        return False

    def models(self) -> Models:
        """List the hosted models."""
        return self.send(calls.models())

    def model(self, name: str) -> Model:
        """Look at one model."""
        return self.send(calls.model(name))

    def recipes(self) -> Recipes:
        """List the named recipes, with the schema of recipes."""
        return self.send(calls.recipes())

    def methods(self) -> Methods:
        """List the members that recipes are made of, with the parameters they take."""
        return self.send(calls.methods())

    def create_stream(
        self,
        id: str | None = None,
        *,
        model: str | None = None,
        recipe: Recipe = "alpha_bn",
        idle_ttl_s: float | None = None,
    ) -> Stream:
        """Create a stream, or return it when it exists with the same model and recipe.

        Args:
            id: 1 to 128 letters, digits, ".", "_" or "-", not beginning with a dot; made up when None.
            model: A hosted model; the default one when None.
            recipe: The name of a preset, or a recipe in full.
            idle_ttl_s: After how long without a request the stream is dropped; the server's default when None.
        """
        return self.send(calls.create_stream(id, model=model, recipe=recipe, idle_ttl_s=idle_ttl_s))

    def streams(self) -> Iterator[Stream]:
        """Iterate over all streams in order of id, page by page."""
        after: str | None = None
        while True:
            page = self.send(calls.streams(after))
            yield from page.streams
            if (after := page.next) is None:
                return

    def stream(self, id: str) -> Stream:
        """Look at one stream."""
        return self.send(calls.stream(id))

    def delete_stream(self, id: str) -> None:
        """Delete a stream."""
        self.send(calls.delete_stream(id))

    def predict(
        self,
        id: str,
        images: Images,
        *,
        adapt: bool = True,
        top_k: int = 5,
        output: Output = "topk",
        idempotency_key: str | None = None,
    ) -> Prediction:
        """Predict images; the stream adapts to them.

        Args:
            id: The stream.
            images: A file's path or content, a uint8 array `[H, W, 3]`, a list of those; or a whole batch as one
                array, uint8 `[B, H, W, 3]`, or float32 `[B, 3, H, W]` already preprocessed for the model.
            adapt: False predicts with the state as it is and leaves it so.
            top_k: How many classes per image.
            output: "topk" answers classes; "probs" and "logits" answer an array of all classes in `values`.
            idempotency_key: Makes a call that this program repeats safe; made up for each call when None.
        """
        call = calls.predict(id, images, adapt=adapt, top_k=top_k, output=output, idempotency_key=idempotency_key)
        return self.send(call)

    def label(self, id: str, labels: Labels, *, learn: bool = True, idempotency_key: str | None = None) -> Labelling:
        """Say what images show: they are counted, and a stream whose recipe learns from labels learns from them.

        Args:
            id: The stream.
            labels: A mapping of samples' ids to classes; or pairs of a sample's id (text) or an image (a `Path`, a
                file's content, a uint8 array `[H, W, 3]`) and its class; or `Label` values. A class goes by its name,
                or its number.
            learn: False counts the labels, and teaches nothing.
            idempotency_key: Makes a call that this program repeats safe; made up for each call when None.

        Example:
            >>> client.label("gate-3", {"9f1c2b7a5d3e4f60-0": "zebra"})  # doctest: +SKIP
        """
        return self.send(calls.label(id, labels, learn=learn, idempotency_key=idempotency_key))

    def label_images(
        self,
        id: str,
        images: Images,
        classes: Sequence[Class],
        *,
        learn: bool = True,
        idempotency_key: str | None = None,
    ) -> Labelling:
        """Show images together with what they show.

        Args:
            id: The stream.
            images: As `predict` takes them, but none that are preprocessed.
            classes: Each image's class, by its name or its number.
            learn: False counts the labels, and teaches nothing.
            idempotency_key: Makes a call that this program repeats safe; made up for each call when None.
        """
        return self.label(id, of_images(images, classes), learn=learn, idempotency_key=idempotency_key)

    def scores(self, id: str) -> StreamLabels:
        """Look at how a stream has done by the labels that came, and at what it has learnt."""
        return self.send(calls.scores(id))

    def reset(self, id: str) -> Stream:
        """Put a stream back to the source state."""
        return self.send(calls.reset(id))

    def snapshot(self, id: str) -> Snapshot:
        """Keep a copy of a stream's state. Not repeated once it may have reached the server."""
        return self.send(calls.snapshot(id))

    def snapshots(self, id: str) -> tuple[Snapshot, ...]:
        """List a stream's snapshots, newest first."""
        return self.send(calls.snapshots(id))

    def download_snapshot(self, sid: str) -> bytes:
        """Download a snapshot (safetensors)."""
        return self.send(calls.download_snapshot(sid))

    def upload_snapshot(self, sid: str, content: bytes) -> Snapshot:
        """Upload a snapshot under an id."""
        return self.send(calls.upload_snapshot(sid, content))

    def delete_snapshot(self, sid: str) -> None:
        """Delete a snapshot."""
        self.send(calls.delete_snapshot(sid))

    def restore(self, id: str, sid: str) -> Stream:
        """Put a stream's state back to a snapshot."""
        return self.send(calls.restore(id, sid))

    def fork(self, id: str, new_id: str | None = None) -> Stream:
        """Copy a stream's state to a new stream, whose id is made up when None."""
        return self.send(calls.fork(id, new_id))

    def edges(self) -> Iterator[Edge]:
        """Iterate over all edges in order of id, page by page."""
        after: str | None = None
        while True:
            page = self.send(calls.edges(after))
            yield from page.edges
            if (after := page.next) is None:
                return

    def edge(self, id: str) -> Edge:
        """Look at one edge."""
        return self.send(calls.edge(id))

    def delete_edge(self, id: str) -> None:
        """Forget an edge; with the last of its stream the stream goes too."""
        self.send(calls.delete_edge(id))

    def events(self, id: str, last_event_id: str | None = None) -> Iterator[StreamEvent]:
        """Iterate over a stream's events until it is deleted, connecting again where they break off.

        Args:
            id: The stream.
            last_event_id: Go on after this event; None begins with the next one.
        """
        feed = EventFeed(id, self._retry, last_event_id)
        while not feed.ended:
            yield from self._connection(feed)
            time.sleep(feed.pause_s())

    def _connection(self, feed: EventFeed) -> Iterator[StreamEvent]:
        """Yield the events of one connection, and leave with the feed what came of it."""
        try:
            with self._http.stream(**parts(feed.call()), timeout=self._events_timeout) as response:
                feed.outcome = response
                if not response.is_success:
                    response.read()
                    return
                feed.open(response)
                for chunk in response.iter_bytes():
                    yield from feed.read(chunk)
                    if feed.ended:
                        return
        except httpx.RequestError as error:
            feed.outcome = error


def server_url(given: str | None) -> httpx.URL:
    """Return the URL of the server: the one given, the environment's, or the default."""
    text = given or os.environ.get("NORMSTREAM_URL") or DEFAULT_URL
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise InvalidArgument(f"the server's URL is {text!r}: {error}; give one like {DEFAULT_URL}") from error
    if url.scheme not in {"http", "https"} or not url.host:
        raise InvalidArgument(f"the server's URL is {text!r}; give one like {DEFAULT_URL}")
    return url


def parts(call: Call[Any]) -> dict[str, Any]:
    """Return a call as httpx takes it."""
    return {
        "method": call.method,
        "url": call.path,
        "params": call.query,
        "headers": call.headers,
        "content": call.body,
    }
