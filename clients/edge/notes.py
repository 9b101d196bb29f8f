"""What an edge writes down: for its next start, beside its model and its last good update, and for who looks at it."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple, Self, TypeVar

from normstream.clients.edge.budget import Allowance, TokenBucket
from normstream.clients.edge.folder import Folder
from normstream.clients.edge.in_use import InUse
from normstream.clients.edge.options import Options
from normstream.clients.edge.selection import Selector
from normstream.clients.edge.status import FILE, Counters, Status

Bucket = TypeVar("Bucket", bound=Allowance)
logger = logging.getLogger(__name__)

STATE = "state.json"
_EVERY_S = 5.0
_FEW_SAMPLES_BYTES = 256 * 2**10
_STATISTICS_EVERY_S = 60.0  # they are a hundred kilobytes, which wear a flash disk out


class Notes(NamedTuple):
    """Counters, what the selection remembers, and what may be kept and sent; what cannot be read begins anew."""

    counters: Counters
    selector: Selector
    budget: TokenBucket
    uplink: Allowance

    @classmethod
    def read(cls, folder: Folder, classes: int, options: Options) -> Self:
        """Read what was last written; the selection's memory only if it is of so many classes."""
        kept = folder.read(STATE)
        return cls(
            Counters.of(kept.get("counters", {})),
            _selector(kept.get("selector"), classes),
            _bucket(TokenBucket, kept.get("budget"), options),
            _bucket(Allowance, kept.get("uplink"), options),
        )

    def write(self, folder: Folder) -> None:
        """Write it down.

        Raises:
            OSError: The folder cannot be written.
        """
        folder.write(STATE, {name: asdict(value) for name, value in self._asdict().items()})


@dataclass(slots=True)
class Diary:
    """Writes down how things are, every few seconds.

    Attributes:
        folder: Where.
        written_at: When it last did, by `time.monotonic`.
        statistics_at: When it last wrote the running statistics.
    """

    folder: Folder
    written_at: float = -math.inf
    statistics_at: float = field(default_factory=time.monotonic)

    @property
    def due_s(self) -> float:
        """In how many seconds to write again."""
        return self.written_at + _EVERY_S - time.monotonic()

    def write(self, notes: Notes, status: Status, in_use: InUse, *, last: bool = False) -> None:
        """Write down all that is due: everything, if it is for the last time."""
        self.written_at = time.monotonic()
        try:
            notes.write(self.folder)
            self.folder.write(FILE, status.plain())
            running = in_use.statistics
            if running is not None and (last or self.written_at - self.statistics_at > _STATISTICS_EVERY_S):
                self.statistics_at = self.written_at
                self.folder.save_statistics(running.packed(in_use.package))
        except OSError as error:  # a full disk must not end the inference
            logger.warning("the state cannot be written: %s", error)


def _selector(kept: Any, classes: int) -> Selector:
    try:
        selector = Selector(**{**kept, "sent": tuple(map(float, kept["sent"]))})
    except (TypeError, KeyError, ValueError):
        return Selector()
    return selector if len(selector.sent) in {0, classes} else Selector()


def _bucket(kind: type[Bucket], kept: Any, options: Options) -> Bucket:
    burst_bytes = _burst_bytes(options.bytes_per_hour) if options.burst_bytes is None else options.burst_bytes
    try:
        return kind(options.bytes_per_hour, burst_bytes, kept["level"], kept["filled_at"])
    except (TypeError, ValueError, KeyError):
        return kind(options.bytes_per_hour, burst_bytes)


def _burst_bytes(bytes_per_hour: float) -> float:
    """Return what may go at once: ten minutes' worth or, if that is more, a few samples; never more than an hour's."""
    return max(bytes_per_hour / 6, min(bytes_per_hour, _FEW_SAMPLES_BYTES))
