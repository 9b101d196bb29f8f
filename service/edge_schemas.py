"""What goes over the wire between edges, their operators and the service."""

import json
from datetime import UTC, datetime
from typing import Annotated, Any, Self

from fastapi import Path
from pydantic import BaseModel, Field

from normstream.service.releases import tag_of, versions_behind
from normstream.service.schemas import AnyRecipe, Body
from normstream.service.storage.records import EdgeRecord, StreamSummary, Tally

EDGE_ID = r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}$"  # With what goes before it, it is a stream's id.
_EDGE_ID_RULE = "1 to 100 letters, digits, `.`, `_` or `-`, not beginning with a dot"
KEY = r"^[A-Za-z0-9_-]{32,128}$"
TAG = r"^[0-9a-f]{1,32}\.[0-9]{1,16}$"
LARGEST = 2**53

EdgeId = Annotated[str, Path(pattern=EDGE_ID, description=f"of an edge: {_EDGE_ID_RULE}")]
Count = Annotated[int, Field(ge=0, le=LARGEST)]


class NewEdge(Body):
    """An edge to register."""

    id: Annotated[str, Field(pattern=EDGE_ID, description=f"{_EDGE_ID_RULE}; made up when left out")] | None = None
    key: Annotated[str, Field(pattern=KEY, description="a secret; made up when left out")] | None = Field(
        None, repr=False
    )
    model: str | None = Field(None, description="a hosted model; the default one when left out")
    recipe: AnyRecipe = Field("cema", validate_default=True, description="a preset's name, or a recipe")
    group: Annotated[str, Field(pattern=EDGE_ID)] | None = Field(
        None, description="edges of one group share a stream: all learn from the samples of each"
    )


class RegisteredEdge(BaseModel):
    """An edge, as it is told to itself."""

    id: str
    key: str = Field(description="the edge's secret, which is told here alone")
    model: str
    teacher: str | None = Field(description="the hosted model that teaches; null when the recipe has no teacher")
    stream: str = Field(description="holds what the edge's model has learnt")
    group: str | None
    recipe: dict[str, Any]
    tag: str = Field(description="names the newest version of the parameters")
    package: str = Field(description="path of the manifest of what the edge needs to run the model")


class Excluded(Body):
    """Why images were not uploaded."""

    unreliable: Count = 0
    uninformative: Count = 0
    redundant: Count = 0
    budget: Count = 0
    spool: Count = 0


class Report(Body):
    """What an edge tells of itself: totals since it was first started."""

    tag: Annotated[str, Field(pattern=TAG)] | None = Field(None, description="of the parameters in use")
    seen: Count | None = Field(None, description="images predicted")
    excluded: Excluded = Excluded()
    uploaded: Count | None = Field(None, description="samples that the server has taken")
    rolled_back: Count | None = Field(None, description="updates that did not do what they should")
    latency_ms: Annotated[float, Field(ge=0, le=1e9)] | None = Field(None, description="of a prediction")


class UploadReport(Report):
    """What an edge tells of itself and of the samples that it sends."""

    taken_at: dict[str, Annotated[float, Field(ge=0, le=1e11)]] = Field(
        {}, max_length=10_000, description="unix seconds, by id of a sample"
    )


class Accepted(BaseModel):
    """What became of uploaded samples."""

    accepted: int = Field(description="new ones")
    duplicates: int = Field(description="that had come before, and do not count again")
    pending: int = Field(description="of the stream, waiting to be learnt from")


class Samples(BaseModel):
    """Samples of an edge."""

    received: int
    used: int = Field(description="learnt from")
    dropped: int = Field(description="too old, forgotten by a reset, or not to be learnt from")
    pending: int


class Edge(BaseModel):
    """A registered edge, without its key."""

    id: str
    model: str
    stream: str
    group: str | None
    recipe: dict[str, Any]
    tag: str | None = Field(description="names the newest version of the parameters; null when the stream is gone")
    acknowledged: str | None = Field(description="the version that the edge runs, as it says")
    versions_behind: int | None = Field(description="null when it is not known, or of a stream that was made anew")
    staleness_s: float | None = Field(description="how long the edge has not run the newest version, at most")
    last_seen: datetime | None
    samples: Samples
    bytes_up: int = Field(description="of images that came from the edge")
    bytes_down: int = Field(description="of updates that went to it")
    report: Report | None = Field(description="what the edge last told of itself")
    uplink_saved: float | None = Field(description="share of the images seen that was not uploaded")
    created_at: datetime

    @classmethod
    def of(cls, record: EdgeRecord, stream: StreamSummary | None, tally: Tally, now: float) -> Self:
        """From the store's records."""
        report = Report.model_validate_json(record.report) if record.report else None
        behind = versions_behind(stream, record.acknowledged) if stream else None
        return cls(
            id=record.id,
            model=record.model,
            stream=record.stream,
            group=record.group,
            recipe=json.loads(record.recipe),
            tag=tag_of(stream) if stream else None,
            acknowledged=record.acknowledged,
            versions_behind=behind,
            staleness_s=_staleness_s(record, stream, behind, now),
            last_seen=_time(record.last_seen),
            samples=Samples(
                received=tally.received, used=tally.used, dropped=tally.dropped, pending=max(0, tally.pending)
            ),
            bytes_up=record.bytes_up,
            bytes_down=record.bytes_down,
            report=report,
            uplink_saved=_uplink_saved(report),
            created_at=datetime.fromtimestamp(record.created_at, UTC),
        )


class EdgePage(BaseModel):
    """Edges in order of id."""

    edges: list[Edge]
    next: str | None = Field(description="give it as `after` for the next page; null on the last")


def _staleness_s(record: EdgeRecord, stream: StreamSummary | None, behind: int | None, now: float) -> float | None:
    if behind == 0:
        return 0.0
    if behind == 1 and stream is not None:
        return max(0.0, now - stream.state_at)
    return None if record.current_at is None else max(0.0, now - record.current_at)


def _uplink_saved(report: Report | None) -> float | None:
    if report is None or not report.seen or report.uploaded is None:
        return None
    return max(0.0, 1 - report.uploaded / report.seen)


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
