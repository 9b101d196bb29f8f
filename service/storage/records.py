"""What the store keeps, as data, and how keeping can fail.

StoreError
├── UnknownStream       no such stream, or it was deleted or expired meanwhile
├── StreamExists        the new id of a fork is taken
├── UnknownSnapshot     no such snapshot
├── UnknownEdge         no such edge
├── QueueFull           as many samples of a stream wait as may
├── Conflict            another worker changed the stream first: load it and do the work again
├── Incomplete          Redis lost a part of a state
└── StoreUnavailable    Redis is away, full, read-only or too slow; nothing is known of the last write
"""
# ruff: noqa: N818  (the names say what happened)

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple, TypeVar

Record = TypeVar("Record")


class StoreError(Exception):
    """Something the store could not do."""


class UnknownStream(StoreError):
    """There is no such stream, or it was deleted or expired meanwhile."""

    def __init__(self, stream_id: str) -> None:
        super().__init__(f"There is no stream '{stream_id}'.")
        self.stream_id = stream_id


class StreamExists(StoreError):
    """The id of a stream to be made is taken."""

    def __init__(self, stream_id: str) -> None:
        super().__init__(f"There is a stream '{stream_id}' already.")
        self.stream_id = stream_id


class UnknownSnapshot(StoreError):
    """There is no such snapshot."""

    def __init__(self, snapshot_id: str) -> None:
        super().__init__(f"There is no snapshot '{snapshot_id}'.")
        self.snapshot_id = snapshot_id


class UnknownEdge(StoreError):
    """There is no such edge."""

    def __init__(self, edge_id: str) -> None:
        super().__init__(f"There is no edge '{edge_id}'.")
        self.edge_id = edge_id


class QueueFull(StoreError):
    """The samples do not fit into their stream's queue, or into their edge's share of it; none was put in."""

    def __init__(self, stream_id: str, waiting: int, waiting_bytes: int, mine: int) -> None:
        super().__init__(
            f"{waiting} samples of {waiting_bytes} bytes wait to be learnt from in stream '{stream_id}', {mine} of them"
            " of this edge, and these would be too many."
        )


class Conflict(StoreError):
    """Another worker changed the stream since this one loaded it; nothing was written."""

    def __init__(self, stream_id: str) -> None:
        super().__init__(f"Stream '{stream_id}' was changed elsewhere: load it and do the work again.")
        self.stream_id = stream_id


class Incomplete(StoreError):
    """Redis lost a part of what a record names."""

    def __init__(self, what: str) -> None:
        super().__init__(f"Redis lost a part of {what}.")


class StoreUnavailable(StoreError):
    """Redis did not do its part; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """What is known of a stream beside its state.

    Attributes:
        recipe: The recipe as canonical JSON.
        generation: Random; changes when the stream is deleted and made anew.
        version: Counts every change, and so is the fencing token.
        unmoved: How many of these changes left its state as it was, as where labels are counted and no more.
        step: Adaptation steps since the source state.
        created_at: Unix seconds, like `updated_at` and `moved_at`.
        moved_at: When its state last changed; None where that was not kept.
        idle_ttl_s: How long the stream lives unused; None is for ever.
    """

    id: str
    model: str
    fingerprint: str
    recipe: str
    generation: str
    version: int
    step: int
    created_at: float
    updated_at: float
    idle_ttl_s: float | None = None
    unmoved: int = 0
    moved_at: float | None = None

    @property
    def state_version(self) -> int:
        """Counts the changes of its state."""
        return self.version - self.unmoved

    @property
    def state_at(self) -> float:
        """When its state last changed, or at the latest."""
        return self.updated_at if self.moved_at is None else self.moved_at


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamRecord(Stream):
    """A stream with its state, as opaque blobs.

    Attributes:
        state: Its state, but for what it has learnt.
        scores: How its predictions compare with the labels that came.
        learnt_tag: Names what it has learnt from labels; new with every lesson. Empty where that is nothing.
        learnt_bytes: The size of that.
    """

    state: bytes
    scores: bytes = b""
    learnt_tag: str = ""
    learnt_bytes: int = 0

    @property
    def state_bytes(self) -> int:
        """The size of the state, with what was learnt."""
        return len(self.state) + self.learnt_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamSummary(Stream):
    """A stream with the size of its state in place of the state."""

    state_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What is known of a snapshot beside its state; `stream` is None for one that was uploaded."""

    id: str
    stream: str | None
    model: str
    fingerprint: str
    recipe: str
    step: int
    created_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotRecord(Snapshot):
    """A snapshot with its state."""

    state: bytes

    @property
    def state_bytes(self) -> int:
        """The size of the state."""
        return len(self.state)


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotSummary(Snapshot):
    """A snapshot with the size of its state in place of the state."""

    state_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeRecord:
    """A device that runs a model by itself, with parameters that follow a stream.

    Attributes:
        key: Known to the edge and to us; it signs by it.
        recipe: Of its stream, as canonical JSON.
        group: What it shares its stream with others as; None when the stream is its own.
        last_seen: Unix seconds, like `created_at` and `current_at`.
        acknowledged: The tag of the stream's version that it runs, as it says.
        current_at: When it last ran the stream's newest version.
        report: What it last told of itself, as JSON.
    """

    id: str
    key: str = field(repr=False)
    model: str
    recipe: str
    group: str | None
    stream: str
    created_at: float
    last_seen: float | None = None
    acknowledged: str | None = None
    current_at: float | None = None
    bytes_up: int = 0
    bytes_down: int = 0
    report: str | None = None


@dataclass(frozen=True, slots=True)
class PendingSample:
    """A sample that waits to be learnt from; the times are unix seconds, by the edge's clock and by ours."""

    id: str
    image: bytes = field(repr=False)
    taken_at: float
    received_at: float


@dataclass(frozen=True, slots=True)
class Tally:
    """How many samples came from an edge, and what became of them."""

    received: int = 0
    used: int = 0
    dropped: int = 0

    @property
    def pending(self) -> int:
        """Those that wait."""
        return self.received - self.used - self.dropped


@dataclass(frozen=True, slots=True)
class Unlabelled:
    """A prediction whose label may come.

    Attributes:
        id: Of the image that was predicted.
        answer: The class that was predicted.
        confidence: In that answer.
        data: What is kept of the image to learn from, an opaque blob; often empty.
    """

    id: str
    answer: str
    confidence: float
    data: bytes = field(default=b"", repr=False)


@dataclass(frozen=True, slots=True)
class Labelled:
    """A prediction whose label came."""

    id: str
    label: str


@dataclass(frozen=True, slots=True)
class Replay:
    """An answer given under an idempotency key, and the digest of the request it answered."""

    digest: str
    answer: bytes


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a stream, for those who watch it; `data` is JSON."""

    type: str
    data: bytes


class LoggedEvent(NamedTuple):
    """An event with the id that Redis gave it, which a reader may resume from."""

    id: str
    type: str
    data: bytes


_PARSERS: dict[Any, Callable[[bytes], Any]] = {
    str: bytes.decode,
    int: int,
    float: float,
    bytes: bytes,
    str | None: lambda value: value.decode() or None,
    float | None: lambda value: float(value) if value else None,
}


def field_names(kind: type[Any]) -> list[str]:
    """The hash fields that hold a record of this kind, in the order of the record."""
    return [each.name for each in fields(kind)]


def to_fields(record: StreamRecord | SnapshotRecord | EdgeRecord) -> dict[str, str | int | float | bytes]:
    """The record as hash fields; None is empty."""
    values = {name: getattr(record, name) for name in field_names(type(record))}
    return {name: "" if value is None else value for name, value in values.items()}


def from_fields(kind: type[Record], values: Iterable[bytes | None]) -> Record:
    """The record whose `field_names(kind)` hold these values; None is a field that was not known when it was kept."""
    parsed = zip(fields(kind), values, strict=True)  # type: ignore[arg-type]
    return kind(**{each.name: _PARSERS[each.type](value) for each, value in parsed if value is not None})
