"""Lessons: some labels of a stream at a time, counted and learnt from in one turn, put into the store as a whole."""

import asyncio
import json
import math
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import NamedTuple

import torch
from anyio import to_thread
from torch import Tensor

from normstream.adaptation import (
    Learning,
    LearningReport,
    Learnt,
    Request,
    StateError,
    StreamState,
    learn,
)
from normstream.service.deadline import Deadline
from normstream.service.engine import Engine
from normstream.service.errors import Conflict, Invalid
from normstream.service.evidence import Evidence, examples, of_image, of_prediction
from normstream.service.label_checks import Found, NamedImage, check_room, check_tally, teaches, without_labelled
from normstream.service.label_schemas import LearningStep, StreamLearning
from normstream.service.scores import Judged, Scores
from normstream.service.settings import Settings
from normstream.service.storage.blob_shelf import Blob
from normstream.service.storage.records import Conflict as StoreConflict
from normstream.service.storage.records import Event, StreamRecord, Unlabelled
from normstream.service.streams import COMMIT_ATTEMPTS, Streams, contended


class LabelledStream(NamedTuple):
    """A stream as a turn finds it."""

    record: StreamRecord
    engine: Engine
    state: StreamState
    names: Sequence[str]  # of its classes
    scores: Scores


@dataclass(frozen=True, slots=True)
class Lesson:
    """What became of some of a request's labels."""

    record: StreamRecord  # the stream's, as it is afterwards
    learnt: Learnt | None
    labelled: int = 0
    duplicates: int = 0
    unlearnt: int = 0
    step: LearningStep | None = None
    new_classes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Given:
    """A lesson, before it is in the store."""

    before: LabelledStream
    images: Sequence[NamedImage]
    judged: Sequence[Judged]
    state: StreamState
    rest: bytes | None  # the state but for what was learnt; None where the lesson leaves it as it is
    blob: Blob | None  # what was learnt, in the store; None where that stays
    step: LearningStep | None
    unlearnt: int

    @property
    def learnt(self) -> Learnt | None:
        """What the stream has learnt with it."""
        return self.state.learnt

    @property
    def new_classes(self) -> tuple[str, ...]:
        """Those that came with it."""
        return self.learnt.names[len(self.before.names) :] if self.learnt else ()

    def holds_for(self, stream: LabelledStream, images: Sequence[NamedImage]) -> bool:
        """Whether the lesson may stand, though another server moved the stream: by predictions, not by lessons."""
        same = stream.record.learnt_tag == self.before.record.learnt_tag
        return same and self.rest is None and list(images) == list(self.images)


class Lessons:
    """Gives lessons, and looks up what there is to know for them."""

    def __init__(self, streams: Streams, settings: Settings) -> None:
        self._streams = streams
        self._store = streams.store
        self._label_ttl_s = settings.label_ttl_s
        self._timeout_s = settings.request_timeout_s
        # Turns and the thread that works on tensors are first come, first served: of lessons that queued there, a
        # prediction would wait for all.
        self._one_at_a_time = asyncio.Lock()

    async def loaded(self, stream_id: str, generation: str | None = None) -> LabelledStream:
        """A stream as it is now.

        Raises:
            UnknownStream: when it is another than that of the generation, if given.
        """
        record, state = await self._streams.loaded(stream_id, generation)
        engine = self._streams.engine(record)
        return LabelledStream(record, engine, state, engine.names_of(state), Scores.unpack(record.scores))

    async def unlabelled(
        self, stream: LabelledStream, images: Sequence[NamedImage], learns: bool
    ) -> tuple[list[NamedImage], Found]:
        """Those of the images that may have their label now, and what the store holds of them.

        Raises:
            Problem: when one may not, for it is unknown, had another label, or its class is one too many.
        """
        found = await self._store.unlabelled(stream.record.id, [each.id for each in images if each.id is not None])
        left = without_labelled(images, found, self._label_ttl_s)
        learning = stream.state.recipe.learn
        if learning is not None:
            new = {each.name for each in left} - set(stream.names)
            taught = {each.name for each in left if learns and teaches(each, found)} & new
            trained = stream.engine.hosted.classes if learning.head == "trained" else 0
            check_room(taught, len(stream.names) - trained, learning)
            check_tally(new - taught, stream.scores.classes.keys() - set(stream.names))
        return left, found

    async def give(self, first: StreamRecord, images: Sequence[NamedImage], learns: bool) -> Lesson:
        """One turn for some of a request's labels.

        Args:
            first: the stream, as the request found it.
            images: with their classes.
            learns: false counts them and no more.
        """
        given = None
        async with self._turn(first.id, learns), AsyncExitStack() as staging:
            for _ in range(COMMIT_ATTEMPTS):
                stream = await self.loaded(first.id, first.generation)
                # Checked again, for another request may have had its turn since.
                left, found = await self.unlabelled(stream, images, learns)
                if not left:
                    return Lesson(stream.record, stream.state.learnt, duplicates=len(images))
                if given is None or not given.holds_for(stream, left):
                    await staging.aclose()
                    given = await self._given(stream, left, found, learns, staging)
                with suppress(StoreConflict):  # Another server moved it meanwhile: begin again from where it is now.
                    record = await self._committed(stream, given)
                    return Lesson(
                        record,
                        given.learnt,
                        labelled=len(left),
                        duplicates=len(images) - len(left),
                        unlearnt=given.unlearnt,
                        step=given.step,
                        new_classes=given.new_classes,
                    )
        raise contended(first.id)

    @asynccontextmanager
    async def _turn(self, stream_id: str, learns: bool) -> AsyncIterator[None]:
        """The stream's turn, for which one lesson at a time waits.

        Raises:
            TimedOut: when it does not come in time.
        """
        async with AsyncExitStack() as held:
            if learns:
                async with Deadline(self._timeout_s).kept():
                    await held.enter_async_context(self._one_at_a_time)
            await held.enter_async_context(self._streams.turn(stream_id))
            yield

    async def _given(
        self,
        stream: LabelledStream,
        images: Sequence[NamedImage],
        found: Found,
        learns: bool,
        staging: AsyncExitStack,
    ) -> _Given:
        """A lesson, before it is the stream's; `staging` holds what it is to put there."""
        evidence = await self._evidence(stream, images, found)
        learning = stream.state.recipe.learn if learns else None
        state, step = await self._taught(stream, learning, evidence)
        rest, blob = None, None
        if state is not stream.state:
            rest, blob = await self._streams.staged(stream.record.id, state, staging)
        return _Given(
            stream,
            images,
            [each.judged for each in evidence],
            state,
            rest=None if _alike(state.tensors, stream.state.tensors) else rest,
            blob=blob,
            step=step,
            unlearnt=sum(not each.is_learnable for each in evidence) if learning else 0,
        )

    async def _committed(self, stream: LabelledStream, given: _Given) -> StreamRecord:
        """Put a lesson into the store, all of it at once."""
        record = await self._store.commit(
            stream.record,
            state=given.rest,
            step=stream.record.step,
            learnt=given.blob,
            scores=stream.scores.counting(given.judged).pack(),
            events=[] if given.step is None else [event_of(stream.record, given.learnt, given.step, given.new_classes)],
            labelled=[(each.id, each.mark) for each in given.images if each.id is not None],
        )
        if given.blob is not None and given.learnt is not None:
            self._streams.states.keep(record, given.learnt)
        return record

    async def _evidence(self, stream: LabelledStream, images: Sequence[NamedImage], found: Found) -> list[Evidence]:
        """What the stream said of images that it predicted before, and what it says of those that came along."""
        shown = [each.image for each in images if each.image is not None]
        answer = None
        if shown and stream.names:
            request = Request(stream.state, torch.stack(shown), adapt=False)
            # What was learnt may have grown beyond all numbers: that is no answer, and the lesson will be discarded.
            with suppress(Invalid):
                answer = await stream.engine.step(request)
        rows = count()
        evidence = []
        for each in images:
            kept = found.get(each.id or "")
            if isinstance(kept, Unlabelled):
                evidence.append(of_prediction(each, kept))
            else:
                evidence.append(of_image(each, answer, next(rows), stream.names))
        return evidence

    async def _taught(
        self, stream: LabelledStream, learning: Learning | None, evidence: Sequence[Evidence]
    ) -> tuple[StreamState, LearningStep | None]:
        """The state after a learning step, and what is told of it; no step where there is nothing to learn from."""
        learnable = [each for each in evidence if each.is_learnable]
        if learning is None or not learnable:
            return stream.state, None
        work = partial(examples, learning, stream.engine.hosted, learnable)
        try:
            given = await to_thread.run_sync(work, limiter=self._streams.decoders)
        except StateError as error:
            raise Conflict(f"{error}. Send the images with their labels.") from None
        try:
            outcome = await stream.engine.do(learn, stream.state, given, [each.judged.label for each in learnable])
        except StateError as error:
            raise Conflict(
                f"The memory of stream {stream.record.id!r} is damaged: {error}. Reset it, or restore a snapshot."
            ) from None
        return outcome.state, step_of(outcome.report, len(learnable))


def _alike(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    """Whether they are the same tensors."""
    return first.keys() == second.keys() and all(value is second[name] for name, value in first.items())


def step_of(report: LearningReport, samples: int) -> LearningStep:
    """A learning step, as it is told."""
    return LearningStep(
        samples=samples,
        loss=_finite(report.loss),
        penalty=_finite(report.penalty),
        replayed=report.replayed,
        discarded=report.discarded,
    )


def event_of(record: StreamRecord, learnt: Learnt | None, step: LearningStep, new_classes: Sequence[str]) -> Event:
    """The lesson, for those who watch; `record` is the stream's from before it."""
    told = {
        "step": record.step,
        "version": record.version + 1,
        **step.model_dump(),
        "new_classes": list(new_classes),
        **({} if learnt is None else StreamLearning.of(learnt).model_dump()),
    }
    return Event("learnt", json.dumps(told).encode())


def _finite(number: float) -> float | None:
    """As JSON can hold it."""
    return number if math.isfinite(number) else None
