"""What can be done with streams: the service's use cases, between the routes and the store."""

import json
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from anyio import CapacityLimiter, to_thread

from normstream.adaptation import (
    ForeignStateError,
    HostedModel,
    HostingError,
    Recipe,
    Request,
    StateError,
    StreamState,
    admit,
    decode,
    encode,
    initial_state,
)
from normstream.service.deadline import Deadline
from normstream.service.engine import Answer, Engine
from normstream.service.errors import Conflict, Invalid, Problem, invalid
from normstream.service.images import Images, prepare
from normstream.service.models import Models, available_cores
from normstream.service.predictions import Asked, Predicted, alarm_name, present
from normstream.service.settings import Settings
from normstream.service.storage.records import Conflict as StoreConflict
from normstream.service.storage.records import Event, Replay, SnapshotRecord, StreamRecord
from normstream.service.storage.store import Store
from normstream.service.turns import Turns

COMMIT_ATTEMPTS = 5


class Streams:
    """The streams of all models. Every method may raise a `Problem` or a `StoreError`, and then has changed nothing."""

    def __init__(self, models: Models, store: Store, settings: Settings) -> None:
        self.models = models
        self.store = store
        self._settings = settings
        self._turns = Turns()
        self._decoders = CapacityLimiter(available_cores())

    async def create(
        self, stream_id: str | None, model: str | None, recipe: Recipe, idle_ttl_s: float | None
    ) -> tuple[StreamRecord, bool]:
        """Make a stream, or find it if it is there with the same model and recipe; says whether it was made."""
        state = await self.initial(model or self.models.default, recipe)
        record, made = await self.store.create(
            stream_id or f"stream-{secrets.token_hex(8)}",
            model=state.model,
            fingerprint=state.fingerprint,
            recipe=recipe.canonical(),
            state=encode(state),
            idle_ttl_s=idle_ttl_s,
        )
        if (record.model, record.recipe) == (state.model, recipe.canonical()):
            self._engine(record)  # Of the same weights too.
        else:
            raise Conflict(
                f"Stream {record.id!r} exists with model {record.model!r} and recipe {record.recipe}, not"
                f" {state.model!r} and {recipe.canonical()}. Choose another id, or delete it first."
            )
        return record, made

    async def initial(self, model: str, recipe: Recipe) -> StreamState:
        """The state of a stream that has seen nothing; refused when the model cannot follow the recipe."""
        return await self.models[model].do(_initial, recipe, self.models.teacher(recipe))

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
        async with self._turns.ticket(stream_id) as turn:
            record, replay = await self.store.load(stream_id, key)
            engine, stale = self._engine(record), False
            if replay is None:
                work = partial(prepare, images, engine.hosted.preprocessing, self._settings.max_pixels)
                async with deadline.kept():
                    tensor = await to_thread.run_sync(work, limiter=self._decoders, abandon_on_cancel=True)
                    stale = await turn()
            for _ in range(COMMIT_ATTEMPTS):
                if stale:
                    record, replay = await self.store.load(stream_id, key)
                if replay is not None:
                    return _replayed(replay, digest)
                if self._engine(record) is not engine:
                    break  # Deleted meanwhile, and made anew with another model.
                state = _state(record)
                if asked.adapt and state.recipe.teacher is not None:
                    raise _taught(stream_id, state.recipe.teacher)
                async with deadline.kept():
                    answer = await engine.step(Request(state, tensor, asked.adapt))
                try:
                    return await self._conclude(record, answer, present(engine, record, answer, asked), key, digest)
                except StoreConflict:
                    stale = True  # Another server moved the stream meanwhile: begin again from where it is now.
        raise _contended(stream_id)

    async def _conclude(
        self, record: StreamRecord, answer: Answer, predicted: Predicted, key: str | None, digest: str
    ) -> Predicted:
        """Put what the step brought into the store, all of it at once."""
        replay = Replay(digest, predicted.pack())
        if predicted.headers["Normstream-Adapted"] == "true":
            await self.store.commit(
                record,
                state=answer.state,
                step=answer.step,
                events=_step_events(record, answer),
                replay=(key, replay) if key else None,
            )
        elif key:
            await self.store.remember(record, key, replay)
        return predicted

    async def reset(self, stream_id: str) -> StreamRecord:
        """Back to the source: nothing of what the stream has seen stays."""

        async def source(record: StreamRecord) -> StreamState:
            recipe = Recipe.parse(record.recipe)
            return await self._engine(record).do(_initial, recipe, self.models.teacher(recipe))

        return await self._replace(stream_id, source, "reset", forget_samples=True)

    async def restore(self, stream_id: str, snapshot_id: str) -> StreamRecord:
        """Put a snapshot's state in place of the stream's; it must be of the same model and recipe."""
        snapshot = await self.store.snapshot(snapshot_id)

        async def kept(record: StreamRecord) -> StreamState:
            recipe = Recipe.parse(record.recipe)
            return await self._engine(record).do(_admitted, snapshot.state, recipe, self.models.teacher(recipe))

        return await self._replace(stream_id, kept, "restore")

    async def fork(self, stream_id: str, new_id: str | None) -> StreamRecord:
        """Another stream that begins with a copy of this one's state."""
        async with self._turn(stream_id):
            return await self.store.fork(stream_id, new_id or f"{stream_id[:100]}-{secrets.token_hex(4)}")

    async def delete(self, stream_id: str) -> None:
        """Forget a stream, after the requests that it has waiting."""
        async with self._turn(stream_id):
            await self.store.delete(stream_id)

    async def snapshot(self, stream_id: str) -> SnapshotRecord:
        """Keep a copy of the state; it outlives the stream."""
        async with self._turn(stream_id):
            record, _ = await self.store.load(stream_id)
        snapshot_id = f"snap-{secrets.token_hex(8)}"
        snapshot = _snapshot(snapshot_id, record.id, record.model, _state(record), record.state)
        await self.store.put_snapshot(snapshot)
        return snapshot

    async def upload_snapshot(self, snapshot_id: str, data: bytes) -> tuple[SnapshotRecord, bool]:
        """Keep a state that was downloaded before; says whether it is new here."""
        state = _decoded(data)
        engine = self._engine_with(state)
        await engine.do(_admitted, data, state.recipe, self.models.teacher(state.recipe))
        record = _snapshot(snapshot_id, None, engine.hosted.name, state, data)
        if await self.store.put_snapshot(record):
            return record, True
        found = await self.store.snapshot(snapshot_id)
        if found.state != data:
            raise Conflict(f"There is another snapshot {snapshot_id!r}. Choose another id, or delete it first.")
        return found, False

    def _engine(self, record: StreamRecord) -> Engine:
        return self.models.of_stream(record.id, record.model, record.fingerprint)

    def _engine_with(self, state: StreamState) -> Engine:
        for engine in self.models.values():
            if engine.hosted.fingerprint == state.fingerprint:
                return engine
        hosted = ", ".join(f"{name!r} ({engine.hosted.fingerprint})" for name, engine in self.models.items())
        raise Conflict(
            f"The state is of model {state.model[:100]!r} ({state.fingerprint[:100]!r}); hosted are {hosted}."
        )

    async def _replace(
        self,
        stream_id: str,
        make: Callable[[StreamRecord], Awaitable[StreamState]],
        event: str,
        *,
        forget_samples: bool = False,
    ) -> StreamRecord:
        async with self._turn(stream_id):
            for _ in range(COMMIT_ATTEMPTS):
                record, _ = await self.store.load(stream_id)
                waiting = await self.store.samples.ids(stream_id) if forget_samples else []
                state = await make(record)
                data = json.dumps({"step": state.step, "version": record.version + 1}).encode()
                try:
                    return await self.store.commit(
                        record, state=encode(state), step=state.step, events=[Event(event, data)], dropped=waiting
                    )
                except StoreConflict:
                    continue
        raise _contended(stream_id)

    @asynccontextmanager
    async def _turn(self, stream_id: str) -> AsyncIterator[None]:
        deadline = Deadline(self._settings.request_timeout_s)
        async with self._turns.ticket(stream_id) as turn:
            async with deadline.kept():
                await turn()
            yield


def _contended(stream_id: str) -> Problem:
    return Conflict(f"Stream {stream_id!r} is changed elsewhere all the time; send its requests to one server.")


def _snapshot(snapshot_id: str, stream: str | None, model: str, state: StreamState, data: bytes) -> SnapshotRecord:
    return SnapshotRecord(
        id=snapshot_id,
        stream=stream,
        model=model,
        fingerprint=state.fingerprint,
        recipe=state.recipe.canonical(),
        step=state.step,
        created_at=time.time(),
        state=data,
    )


def _taught(stream_id: str, teacher: str) -> Problem:
    return invalid(
        "query.adapt",
        f"stream {stream_id!r} learns from samples that edges upload, taught by {teacher!r}, and not from what it"
        " predicts; send adapt=false",
    )


def _initial(hosted: HostedModel, recipe: Recipe, teacher: HostedModel | None) -> StreamState:
    try:
        return initial_state(hosted, recipe, teacher)
    except HostingError as error:
        raise invalid("body.recipe", str(error)) from None


def _state(record: StreamRecord) -> StreamState:
    try:
        state = decode(record.state)
        if (state.fingerprint, state.recipe.canonical()) != (record.fingerprint, record.recipe):
            raise StateError("it belongs to another model or recipe than the stream")
    except StateError as error:
        raise Conflict(
            f"The state of stream {record.id!r} is damaged ({error}). Reset it, or restore a snapshot."
        ) from None
    return state


def _decoded(data: bytes) -> StreamState:
    try:
        return decode(data)
    except StateError as error:
        raise invalid("body", f"no state of a stream: {error}") from None


def _admitted(hosted: HostedModel, data: bytes, recipe: Recipe, teacher: HostedModel | None) -> StreamState:
    try:
        return admit(_decoded(data), hosted, recipe, teacher)
    except HostingError as error:
        raise Conflict(f"The snapshot does not fit: {error}.") from None
    except ForeignStateError as error:
        raise Conflict(f"The snapshot does not fit: {error}.") from None
    except StateError as error:
        raise invalid("body", f"no state of a stream: {error}") from None


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
