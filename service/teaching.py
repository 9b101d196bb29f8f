"""Learning from what edges upload: one lesson at a time, in turns among the streams.

Any number of servers may do so on one store. A lesson counts when its commit finds the stream as it was loaded, and
the samples leave their queue with that very commit: whenever a server dies, they are learnt from or still wait.
"""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from functools import lru_cache
from typing import Any

from normstream.adaptation import HostedModel, Recipe, Sample, TeachingReport, decode, encode, teaching
from normstream.adaptation.taught_member import TaughtMember
from normstream.service.background import meanwhile
from normstream.service.errors import Problem
from normstream.service.models import Models
from normstream.service.storage.records import (
    Conflict,
    Event,
    PendingSample,
    StoreUnavailable,
    StreamRecord,
    UnknownStream,
)
from normstream.service.storage.sample_queue import LEASE_S, Waiting
from normstream.service.storage.store import Store
from normstream.service.streams import COMMIT_ATTEMPTS

ATTEMPTS = 3
POLL_S = 1.0

_log = logging.getLogger("normstream")


class Classroom:
    """Teaches the streams for which enough samples wait, or any for long enough.

    Args:
        models: Students and teachers.
        store: Of streams and samples.
        arrival: Set by others when samples have come; those that came to another server are noticed within a second.
        closing: Set by others when no lesson is to begin any more.
        sample_ttl_s: How long a sample may wait.
    """

    def __init__(
        self, models: Models, store: Store, arrival: asyncio.Event, closing: asyncio.Event, sample_ttl_s: float
    ) -> None:
        self._models = models
        self._store = store
        self._arrival = arrival
        self._closing = closing
        self._sample_ttl_s = sample_ttl_s
        self._overtaken: dict[str, float] = {}  # by stream, when a lesson came to nothing since others had moved it

    async def run(self) -> None:
        """Teach until cancelled, or until it is closing time."""
        while not self._closing.is_set():
            try:
                while not self._closing.is_set() and await self.turn():
                    pass
            except StoreUnavailable as error:
                _log.warning("Teaching waits for the store: %s", error)
            except Exception:
                _log.exception("A defect in teaching; it goes on")
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL_S):
                    await self._arrival.wait()
            self._arrival.clear()

    async def turn(self) -> bool:
        """One lesson for the stream that has gone without for longest; False when no stream is due."""
        now = time.time()
        waiting = await self._fresh(now - self._sample_ttl_s)
        due = [each for each in waiting if self._is_due(each, now)]
        self._overtaken = {each.stream: self._overtaken.get(each.stream, 0.0) for each in due}
        for each in sorted(due, key=lambda each: (max(each.taught_at, self._overtaken[each.stream]), each.oldest_at)):
            async with self._store.samples.lease(each.stream) as leased:
                if leased and await self._lesson(each):
                    return True
        return False

    async def _fresh(self, oldest_at: float) -> list[Waiting]:
        """The streams for which samples wait, without those that came too long ago."""
        waiting = await self._store.samples.waiting()
        if not (old := [each.stream for each in waiting if each.oldest_at < oldest_at]):
            return waiting
        for stream in old:
            await self._store.samples.drop(stream, await self._store.samples.ids(stream, until=oldest_at))
        return await self._store.samples.waiting()

    def _is_due(self, waiting: Waiting, now: float) -> bool:
        member = _member(waiting.recipe)
        if member is None or waiting.model not in self._models or member.teacher not in self._models:
            return False  # It may be another server's.
        return waiting.samples >= member.batch or waiting.oldest_at <= now - member.patience_s

    async def _lesson(self, waiting: Waiting) -> bool:
        """One lesson; False when there is nothing to teach after all."""
        try:
            record, _ = await self._store.load(waiting.stream)
            student = self._models.of_stream(record.id, record.model, record.fingerprint)
        except (UnknownStream, Problem):
            return False
        member = _member(record.recipe)
        if member is None or member.teacher not in self._models:
            return False
        samples = await self._store.samples.first(record.id, member.batch)
        if not samples:
            return False
        teacher = self._models[member.teacher].hosted
        try:
            async with self._held(record.id):
                passes = _passes(student.hosted, teacher, record.state, samples, time.time())
                # Pass by pass, so that predictions have their turns between.
                while (taught := await student.do(_advanced, passes)) is None:
                    pass
                state, step, report = taught
        except Exception as error:
            await self._failed(record, samples, error)
            return True
        with suppress(UnknownStream):  # Then the samples are gone with it.
            if not await self._committed(record, state, step, report, samples):
                self._overtaken[record.id] = time.time()
        return True

    async def _committed(
        self, record: StreamRecord, state: bytes, step: int, report: TeachingReport, samples: Sequence[PendingSample]
    ) -> bool:
        """Put a lesson into the store; False where the state has moved meanwhile, and the samples wait on."""
        now, used = record, [sample.id for sample in samples]
        for _ in range(COMMIT_ATTEMPTS):
            events = _events(now, step, report)
            with suppress(Conflict):
                await self._store.commit(now, state=state, step=step, events=events, used=used)
                return True
            now, _ = await self._store.load(record.id)
            if _state_of(now) != _state_of(record):
                break  # What else moves the version, as labels that are counted do, leaves the lesson true.
        return False

    async def _failed(self, record: StreamRecord, samples: Sequence[PendingSample], error: Exception) -> None:
        """Whatever it was: it is told, other streams go on, and after some attempts these samples are given up."""
        _log.warning("A lesson of stream %r failed: %s", record.id, error, exc_info=error)
        told = {
            "step": record.step,
            "version": record.version,
            "alarm": "lesson_failed",
            "samples": len(samples),
            "reason": str(error)[:300],
        }
        ids = [sample.id for sample in samples]
        await self._store.samples.fail(record.id, ids, told, attempts=ATTEMPTS)

    @asynccontextmanager
    async def _held(self, stream_id: str) -> AsyncIterator[None]:
        """Hold the lease for as long as the block takes."""

        async def renew() -> None:
            while True:
                await asyncio.sleep(LEASE_S / 3)
                with suppress(StoreUnavailable):
                    await self._store.samples.renew(stream_id)

        async with meanwhile(renew()):
            yield


def _state_of(record: StreamRecord) -> tuple[Any, ...]:
    """What tells states apart; after a failover of Redis a version may stand for two, which were not made at once."""
    return record.generation, record.state_version, record.moved_at


@lru_cache(maxsize=1024)
def _member(recipe: str) -> TaughtMember | None:
    """The member of a recipe that is taught, if any."""
    try:
        member = Recipe.parse(recipe).update
    except ValueError:
        return None  # Of a later version of this program.
    return member if isinstance(member, TaughtMember) else None


def _passes(
    student: HostedModel, teacher: HostedModel, state: bytes, samples: Sequence[PendingSample], now: float
) -> Iterator[tuple[bytes, int, TeachingReport] | None]:
    """A lesson as work for the tensor thread, a pass at a time; the last gives the outcome, those before it None."""
    given = [Sample(sample.id, sample.image, sample.taken_at) for sample in samples]
    taught = yield from teaching(student, teacher, decode(state).to(student.device), given, now)
    yield encode(taught.state), taught.state.step, taught.report


def _advanced(
    _: HostedModel, passes: Iterator[tuple[bytes, int, TeachingReport] | None]
) -> tuple[bytes, int, TeachingReport] | None:
    return next(passes)


def _events(record: StreamRecord, step: int, report: TeachingReport) -> list[Event]:
    """The lesson, and why it was discarded if it was."""
    counters = {"step": step, "version": record.version + 1}
    told: dict[str, Any] = {
        **counters,
        "samples": report.used,
        "replayed": report.replayed,
        "replay_images": report.replay_images,
        "replay_bytes": report.replay_bytes,
        "student_loss": report.student_loss,
        "teacher_loss": report.teacher_loss,
        "teacher_entropy": report.teacher_entropy,
        "discarded": report.discarded,
        "reason": report.reason,
    }
    events = [Event("taught", json.dumps(told).encode())]
    if report.discarded:
        alarm = {**counters, "alarm": "lesson_discarded", "samples": report.used, "reason": report.reason}
        events.append(Event("alarm", json.dumps(alarm).encode()))
    return events
