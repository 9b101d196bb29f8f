"""How an edge is doing: a value, and its counters."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

from normstream.clients.edge.folder import Folder
from normstream.clients.edge.selection import Reason

FILE = "status.json"
BUDGET = "budget"
SPOOL = "spool"
REASONS = (*map(str, Reason), BUDGET, SPOOL)


@dataclass(slots=True)
class Counters:
    """What is counted since an edge was first started.

    Each is written by one thread only and read by all, so there is no lock.

    Attributes:
        seen: Images predicted.
        taken_in: Images taken into the edge's own statistics, if it keeps such.
        excluded: Images not uploaded, by reason: those of `selection.Reason`, "budget" for want of bytes, and "spool"
            for what was dropped while it waited.
        uploaded: Samples that the server has taken.
        unwanted: Samples that the server would not have.
        updates: Updates taken into use.
        rolled_back: Updates that did not do what they should.
        rejected: Updates that were corrupt, foreign or not signed by the server.
        bytes_up: Bytes sent.
        bytes_down: Bytes received; the model's package is not among them.
    """

    seen: int = 0
    taken_in: int = 0
    excluded: dict[str, int] = field(default_factory=lambda: dict.fromkeys(REASONS, 0))
    uploaded: int = 0
    unwanted: int = 0
    updates: int = 0
    rolled_back: int = 0
    rejected: int = 0
    bytes_up: int = 0
    bytes_down: int = 0

    @classmethod
    def of(cls, kept: Mapping[str, Any]) -> Self:
        """Read what was kept; a counter that is not there, or is no number, begins at 0."""
        counters = cls()
        for each in fields(cls):
            value = kept.get(each.name)
            if each.name == "excluded" and isinstance(value, dict):
                counters.excluded |= {key: value[key] for key in REASONS if isinstance(value.get(key), int)}
            elif each.name != "excluded" and isinstance(value, int):
                setattr(counters, each.name, value)
        return counters


@dataclass(frozen=True, slots=True)
class Status:
    """How an edge is doing at one moment.

    Attributes:
        edge: Its id.
        server: The address of its server.
        model: The name of its model.
        fingerprint: The fingerprint of the model's weights.
        version: The version of the parameters in use; None for those that the model came with.
        version_created_at: When the server made that version, in unix seconds.
        counters: What is counted.
        waiting: Samples in the spool.
        waiting_bytes: What they take.
        latency_ms: The median ("p50") and the 95th percentile ("p95") of the last steps.
        applied_ms: How long the last update took to be taken into use.
        last_contact_at: When the server last answered, in unix seconds.
        problem: What is wrong now; None when all is well.
        at: The moment, in unix seconds.
    """

    edge: str
    server: str
    model: str
    fingerprint: str
    version: str | None
    version_created_at: float | None
    counters: Counters
    waiting: int
    waiting_bytes: int
    latency_ms: Mapping[str, float]
    applied_ms: float | None
    last_contact_at: float | None
    problem: str | None
    at: float = field(default_factory=time.time)

    @property
    def age_s(self) -> float | None:
        """How old the parameters in use are."""
        return None if self.version_created_at is None else max(0.0, self.at - self.version_created_at)

    @property
    def share_uploaded(self) -> float:
        """What part of the images was uploaded."""
        counters = self.counters  # after a kill those of the last seconds are lost, and what waited is uploaded
        return min(1.0, counters.uploaded / counters.seen) if counters.seen else 0.0

    def plain(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {**asdict(self), "age_s": self.age_s, "share_uploaded": self.share_uploaded}

    def report(self) -> dict[str, Any]:
        """Return what the edge tells its server about itself."""
        counters = self.counters
        return {
            "tag": self.version,
            "seen": counters.seen,
            "excluded": counters.excluded,
            "uploaded": counters.uploaded,
            "rolled_back": counters.rolled_back,
            "latency_ms": self.latency_ms.get("p50"),
        }

    @classmethod
    def kept(cls, folder: Folder) -> Self | None:
        """Read what the client on this folder last wrote; None when it has written nothing."""
        content = folder.read(FILE)
        known = {each.name: content[each.name] for each in fields(cls) if each.name in content}
        if len(known) < len(fields(cls)):
            return None
        return cls(**{**known, "counters": Counters.of(known["counters"])})
