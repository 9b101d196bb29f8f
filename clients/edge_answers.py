"""What the server answers about edges to those who operate them, as frozen values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from normstream.clients.reading import OPTIONAL_TIME, TIME, each, one, optional


@dataclass(frozen=True, slots=True)
class EdgeSamples:
    """Samples that came from an edge: all, those learnt from, those that could not be, and those that wait."""

    received: int
    used: int
    dropped: int
    pending: int


@dataclass(frozen=True, slots=True)
class EdgeReport:
    """What an edge last told of itself: totals since it was first started, None where it did not say.

    Attributes:
        tag: The version of the parameters that it used.
        seen: Images predicted.
        excluded: Why images were not uploaded, and how many each.
        uploaded: Samples that the server has taken.
        rolled_back: Updates that did not do what they should.
        latency_ms: Of a prediction.
    """

    tag: str | None = None
    seen: int | None = None
    excluded: Mapping[str, int] = field(default_factory=dict)
    uploaded: int | None = None
    rolled_back: int | None = None
    latency_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Edge:
    """A device that runs a hosted model by itself, with parameters that follow a stream.

    Attributes:
        id: Its name.
        model: The model that it runs.
        stream: The stream that holds what its model has learnt.
        group: What edges that share a stream have in common; None for an edge of its own.
        recipe: How its stream learns, in full.
        tag: The newest version of the parameters; None when the stream is gone.
        acknowledged: The version that it runs, as it says.
        versions_behind: How many versions have come since; None when that is not known.
        staleness_s: How long it has not run the newest version, at most.
        last_seen: When it last called.
        samples: Those that came from it.
        bytes_up: Of images that came from it.
        bytes_down: Of updates that went to it.
        report: What it last told of itself.
        uplink_saved: The share of the images seen that was not uploaded.
        created_at: When it was registered.
    """

    id: str
    model: str
    stream: str
    group: str | None
    recipe: Mapping[str, Any]
    tag: str | None
    acknowledged: str | None
    versions_behind: int | None
    staleness_s: float | None
    last_seen: datetime | None = field(metadata=OPTIONAL_TIME)
    samples: EdgeSamples = field(metadata=one(EdgeSamples))
    bytes_up: int
    bytes_down: int
    report: EdgeReport | None = field(metadata=optional(EdgeReport))
    uplink_saved: float | None
    created_at: datetime = field(metadata=TIME)


@dataclass(frozen=True, slots=True)
class EdgePage:
    """Some edges in order of id, and the id after which the next page begins."""

    edges: tuple[Edge, ...] = field(metadata=each(Edge))
    next: str | None = None
