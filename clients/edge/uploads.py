"""Samples on their way from the spool to the server, with the edge's report."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from normstream.clients.edge.backoff import Backoff
from normstream.clients.edge.budget import Allowance
from normstream.clients.edge.clock import Clock
from normstream.clients.edge.folder import Identity
from normstream.clients.edge.link import Full, LinkError, Unconnected, Unreachable, Unwanted, Unwelcome
from normstream.clients.edge.membership import Membership
from normstream.clients.edge.spell import Spell
from normstream.clients.edge.spool import Spool, Waiting
from normstream.clients.edge.status import Counters

logger = logging.getLogger(__name__)

BATCH_BYTES = 4 * 2**20
_SILENT_S = 600.0  # after a report that the server would not have


@dataclass(slots=True)
class Uploader:
    """Sends what waits, in batches; where the server cannot be reached, again and again.

    A batch is sent when it is full or when its oldest sample has waited for `linger_s`; a report alone when nothing
    was sent for `report_every_s`. Of a batch that the server will not have, each sample is tried alone, so that a bad
    one does not cost its neighbours; and what is refused then, or was a report alone, once more without the report,
    which may be what is at fault. If it is, nothing is said of the edge for ten minutes.

    What waits was within the budget when it was put there; what has gathered in a time without a server goes at the
    budget's rate all the same.

    Attributes:
        membership: Makes the calls.
        spool: Where the samples wait.
        counters: Counts what becomes of them.
        report: Returns what the edge tells about itself.
        clock: Tells the time.
        backoff: The pauses after failures.
        uplink: What may be sent; samples that went and did not arrive count as well.
        full: Whether the server takes no samples at the moment.
        batch: Samples in one call at most.
        linger_s: How long a sample may wait for others.
        report_every_s: How long the server may hear nothing of the edge.
    """

    membership: Membership
    spool: Spool
    counters: Counters
    report: Callable[[], Mapping[str, Any]]
    clock: Clock = field(default_factory=Clock)
    backoff: Backoff = field(default_factory=Backoff)
    uplink: Allowance = field(default_factory=Allowance)
    full: Spell = field(
        default_factory=lambda: Spell("the server has no room for samples now", "the server takes samples again")
    )
    batch: int = 16
    linger_s: float = 10.0
    report_every_s: float = 60.0
    _not_before: float = -math.inf  # by clock.elapsed_s
    _report_due: float = -math.inf
    _silent_until: float = -math.inf  # no report until then
    _suspects: int = 0  # samples that go alone, because a batch was refused

    def turn(self) -> float:
        """Send a batch if one is due; return after how many seconds to look again."""
        now = self.clock.elapsed_s()
        if now < self._not_before:  # new samples do not shorten a pause
            return self._not_before - now
        lacking_s = self._lacking_s()
        if lacking_s > 0 and now < self._report_due:
            return min(lacking_s, self._report_due - now)
        pause_s = self._tried(self._batch() if lacking_s <= 0 else ())
        self._not_before = self.clock.elapsed_s() + pause_s
        return pause_s

    def _lacking_s(self) -> float:
        """Return in how many seconds a batch is due if no samples come; at most 0 when one is."""
        oldest = self.spool.oldest()
        if oldest is None:
            self.full.note(None)  # nothing wants room
            return math.inf
        now = self.clock.unix_s()
        waited_s = abs(now - oldest)  # a clock may have been set back
        if len(self.spool) < self.batch and waited_s < self.linger_s:
            return self.linger_s - waited_s
        first = self.spool.best(1, 0, now)
        return self.uplink.lacking_s(len(first[0].image), now) if first else math.inf

    def _batch(self) -> Sequence[Waiting]:
        now = self.clock.unix_s()
        most_bytes = min(BATCH_BYTES, self.uplink.available(now))
        return self.spool.best(1 if self._suspects else self.batch, int(most_bytes), now)

    def _tried(self, samples: Sequence[Waiting]) -> float:
        """Try to send samples; return how long to wait after it."""
        try:
            return self._send(samples)
        except Unwelcome:
            return math.inf
        except LinkError as error:
            return self.backoff.pause_s(error.retry_after_s if isinstance(error, Unreachable) else 0.0)

    def _send(self, samples: Sequence[Waiting]) -> float:
        reports = self.clock.elapsed_s() >= self._silent_until
        try:
            self._upload(samples, self.report() if reports else {})
        except Unwanted as error:
            return self._refused(samples, error, reported=reports)
        return 0.0

    def _upload(self, samples: Sequence[Waiting], report: Mapping[str, Any]) -> None:
        """Send samples, and forget them.

        Raises:
            LinkError: The server did not take them; they still wait.
        """
        told = {**report, "taken_at": {sample.id: sample.taken_at for sample in samples}}
        size = sum(len(sample.image) for sample in samples)

        def sent(identity: Identity) -> None:
            self.uplink.spend(size)
            try:
                self.membership.link.upload(identity, samples, told)
            except Unconnected:
                self.uplink.spend(-size)
                raise

        try:
            self.membership.call(sent)
        except Full as error:
            if samples:
                self.full.note(str(error))
            raise
        if samples:
            self.full.note(None)
        self.counters.uploaded += len(samples)
        self._settle(samples)

    def _refused(self, samples: Sequence[Waiting], error: Unwanted, *, reported: bool) -> float:
        if len(samples) > 1:
            self._suspects = len(samples)
            return 0.0
        if reported and self._pass_without_report(samples):
            logger.warning("the server will not have this edge's report, which is left out for a while: %s", error)
            self._silent_until = self.clock.elapsed_s() + _SILENT_S
            self._suspects = 0
            self.backoff.succeed()
            return 0.0
        refused = f"sample {samples[0].id}" if samples else "this edge's reports"
        logger.warning("the server will not have %s: %s", refused, error)
        self.counters.unwanted += len(samples)
        self._settle(samples)
        return self.backoff.pause_s()  # nothing that is refused is sent in a hurry

    def _pass_without_report(self, samples: Sequence[Waiting]) -> bool:
        """Return whether the server takes what it refused if the report is left out, which then was at fault."""
        try:
            self._upload(samples, {})
        except Unwanted:
            return False
        return True

    def _settle(self, samples: Sequence[Waiting]) -> None:
        self.spool.remove(sample.id for sample in samples)
        self._suspects = max(0, self._suspects - len(samples))
        self._report_due = self.clock.elapsed_s() + self.report_every_s
        if not self._suspects:
            self.backoff.succeed()
