"""Predicting: images in, answers out, and at most one adaptation step."""

import json
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from anyio import to_thread
from torch import Tensor

from normstream.adaptation import Request, StreamState, pack
from normstream.service.deadline import Deadline
from normstream.service.engine import Answer, Engine
from normstream.service.errors import Conflict, Invalid, invalid
from normstream.service.images import Images, prepare
from normstream.service.predictions import Asked, Predicted, alarm_name, present
from normstream.service.samples import new_prediction, unlabelled
from normstream.service.settings import Settings
from normstream.service.storage.records import Conflict as StoreConflict
from normstream.service.storage.records import Event, Replay, StreamRecord, Unlabelled
from normstream.service.streams import COMMIT_ATTEMPTS, Streams, contended


class Predictor:
    """Predicts for streams. Every method may raise a `Problem` or a `StoreError`, and then has changed nothing."""

    def __init__(self, streams: Streams, settings: Settings) -> None:
        self._streams = streams
        self._store = streams.store
        self._settings = settings

    async def predict(
        self, stream_id: str, images: Images, asked: Asked, key: str | None, deadline: Deadline
    ) -> Predicted:
        """Predict, and adapt if asked to; the new state is in the store before the answer is given.

        Args:
            stream_id: whose images they are.
            images: undecoded.
            asked: what of the answer is wanted.
            key: an idempotency key; a request that comes again under it gets the first answer, and adapts once.
            deadline: until when it may wait.
        """
        digest = asked.digest(images) if key else ""
        async with self._streams.turns.ticket(stream_id) as turn:
            record, replay = await self._store.load(stream_id, key)
            engine, stale = self._streams.engine(record), False
            if replay is None:
                async with deadline.kept():
                    tensor = await self.prepared(images, engine)
                    stale = await turn()
            for _ in range(COMMIT_ATTEMPTS):
                if stale:
                    record, replay = await self._store.load(stream_id, key)
                if replay is not None:
                    return _replayed(replay, digest)
                if self._streams.engine(record) is not engine:
                    break  # Deleted meanwhile, and made anew with another model.
                with suppress(StoreConflict):
                    async with deadline.kept():
                        state = await self._streams.states.of(record)
                    _check(record, state, asked)
                    async with deadline.kept():
                        answer = await engine.step(Request(state, tensor, asked.adapt))
                        prediction_id = new_prediction() if self._settings.label_ttl_s else None
                        waiting = await self._waiting(prediction_id, engine, state, tensor, answer)
                    predicted = present(record, answer, asked, engine.labels_of(state), prediction_id)
                    return await self._conclude(record, answer, predicted, key, digest, waiting)
                stale = True  # Another server moved the stream meanwhile: begin again from where it is now.
        raise contended(stream_id)

    async def prepared(self, images: Images, engine: Engine) -> Tensor:
        """The images as the model takes them."""
        work = partial(prepare, images, engine.hosted.preprocessing, self._settings.max_pixels)
        return await to_thread.run_sync(work, limiter=self._streams.decoders, abandon_on_cancel=True)

    async def _waiting(
        self, prediction_id: str | None, engine: Engine, state: StreamState, tensor: Tensor, answer: Answer
    ) -> list[Unlabelled]:
        """What the store is to keep of a prediction until its labels come."""
        if prediction_id is None:
            return []
        learning, kept = state.recipe.learn, []
        if learning is not None and learning.unlabelled != "nothing":
            work = partial(pack, learning, engine.hosted, tensor, answer.features)
            kept = await to_thread.run_sync(work, limiter=self._streams.decoders, abandon_on_cancel=True)
        return unlabelled(prediction_id, answer, engine.names_of(state), kept)

    async def _conclude(
        self,
        record: StreamRecord,
        answer: Answer,
        predicted: Predicted,
        key: str | None,
        digest: str,
        waiting: Sequence[Unlabelled],
    ) -> Predicted:
        """Put what the step brought into the store, all of it at once."""
        replay = Replay(digest, predicted.pack()) if key else None
        if predicted.headers["Normstream-Adapted"] == "true":
            await self._store.commit(
                record,
                state=answer.state,
                step=answer.step,
                events=_step_events(record, answer),
                replay=(key, replay) if key and replay else None,
                predicted=waiting,
            )
        elif key or waiting:
            await self._store.remember(record, key, replay, waiting)
        return predicted


def _check(record: StreamRecord, state: StreamState, asked: Asked) -> None:
    """Refuse what the stream cannot do.

    Raises:
        Problem: when it does not adapt by itself, or knows no class.
    """
    if asked.adapt and state.recipe.teacher is not None:
        raise invalid(
            "query.adapt",
            f"stream {record.id!r} learns from samples that edges upload, taught by {state.recipe.teacher!r}, and not"
            " from what it predicts; send adapt=false",
        )
    if state.learnt is not None and not state.learnt.names:
        raise Conflict(
            f"Stream {record.id!r} knows no class yet. Send images with labels first:"
            f" POST /v1/streams/{record.id}/labels."
        )


def _replayed(replay: Replay, digest: str) -> Predicted:
    if replay.digest != digest:
        raise Invalid(
            "The Idempotency-Key was used for another request on this stream (other images or other options)."
            " Make up a new key for each request."
        )
    return Predicted.unpack(replay.answer).replayed()


def _step_events(record: StreamRecord, answer: Answer) -> list[Event]:
    """The step, and the alarm that it raised, if any."""
    report = answer.report
    counters = {"step": answer.step, "version": record.version + 1}
    data: dict[str, Any] = {
        **counters,
        "images": len(answer.entropy),
        "entropy": round(float(answer.entropy.mean()), 5),
        "drift": {path: float(f"{value:.4g}") for path, value in answer.drift.items()},
    }
    if report is None:
        return [Event("step", json.dumps(data).encode())]
    alarm = {"alarm": alarm_name(report), "alarms": report.alarms}
    events = [Event("step", json.dumps({**data, "moved": report.moved, **alarm}).encode())]
    if report.alarm:
        events.append(Event("alarm", json.dumps({**counters, **alarm, "restored": report.restored}).encode()))
    return events
