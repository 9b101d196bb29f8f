"""Server-sent events, without I/O: bytes in, events out, and what to do when the connection ends."""

from __future__ import annotations

import codecs
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx

from normstream.clients import calls
from normstream.clients.answers import StreamEvent
from normstream.clients.call import Call, Outcome, failure
from normstream.clients.errors import UnexpectedAnswer
from normstream.clients.reading import read
from normstream.clients.retry import Retry


@dataclass(frozen=True, slots=True)
class Message:
    """One message of an event stream as the HTML standard has it; `id` is None when it has none."""

    kind: str
    data: str
    id: str | None


class MessageParser:
    """Cuts an event stream into messages, wherever its bytes were cut on the way."""

    def __init__(self) -> None:
        text = codecs.getincrementaldecoder("utf-8-sig")(errors="replace")
        self._decoder = io.IncrementalNewlineDecoder(text, translate=True)
        self._pending = ""

    def feed(self, chunk: bytes) -> Iterator[Message]:
        """Yield the messages that are complete with `chunk`."""
        self._pending += self._decoder.decode(chunk)
        *blocks, self._pending = self._pending.split("\n\n")
        yield from map(_message, blocks)


def _message(block: str) -> Message:
    values: dict[str, list[str]] = {}
    for line in block.split("\n"):
        name, _, value = line.partition(":")  # a comment is a line without a name
        values.setdefault(name, []).append(value.removeprefix(" "))
    return Message(
        kind=values.get("event", [""])[-1] or "message",
        data="\n".join(values.get("data", [])),
        id=values["id"][-1] if "id" in values else None,
    )


@dataclass(slots=True)
class EventFeed:
    """The events of one stream, over as many connections as it takes.

    Attributes:
        stream: The stream's id.
        retry: How often and when to connect again.
        last_event_id: The id of the last event seen.
        outcome: What came of the latest connection.
        ended: Whether no more events can come.
    """

    stream: str
    retry: Retry
    last_event_id: str | None = None
    outcome: Outcome = field(init=False)
    ended: bool = False
    _parser: MessageParser = field(default_factory=MessageParser)
    _opened: bool = False
    _failures: int = 0

    def call(self) -> Call[None]:
        """Return the call that goes on after the last event seen."""
        self._parser = MessageParser()  # what a broken connection left behind is no message
        self._opened = False
        return calls.events(self.stream, self.last_event_id)

    def open(self, response: httpx.Response) -> None:
        """Take note that a connection stands."""
        kind = response.headers.get("Content-Type", "")
        if not kind.startswith("text/event-stream"):
            raise UnexpectedAnswer(f"the server sent {kind!r} in place of events; check that the URL is right")
        self._opened = True

    def read(self, chunk: bytes) -> Iterator[StreamEvent]:
        """Yield the events that are complete with `chunk`."""
        self._failures = 0
        for message in self._parser.feed(chunk):
            if message.id is not None:
                self.last_event_id = message.id or None
            if message.data and not self.ended:
                self.ended = message.kind == "deleted"
                yield _event(message, self.last_event_id)

    def pause_s(self) -> float:
        """Return how long to wait before connecting again.

        Raises:
            NormstreamError: There is no use in it, or it failed too often.
        """
        outcome = self._failure()
        if self.ended or (self._opened and isinstance(outcome, httpx.ReadTimeout)):
            return 0.0  # a long silence is no failure, and a new connection finds out whether it was a death
        pause_s = self.retry.pause_s(calls.events(self.stream), outcome, self._failures)
        if pause_s is None:
            raise failure(outcome)
        self._failures += 1
        return pause_s

    def _failure(self) -> Outcome:
        if isinstance(self.outcome, httpx.Response) and self.outcome.is_success:
            return httpx.RemoteProtocolError("the events broke off", request=self.outcome.request)
        return self.outcome


def _event(message: Message, last_event_id: str | None) -> StreamEvent:
    data = _data(message)
    return read(StreamEvent, {**data, "kind": message.kind, "id": last_event_id, "data": data})


def _data(message: Message) -> dict[str, Any]:
    try:
        data = json.loads(message.data)
    except ValueError as error:
        raise UnexpectedAnswer(f"the event {message.data!r} is no JSON: {error}") from error
    return data if isinstance(data, dict) else {"value": data}
