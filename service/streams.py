"""What can be done with streams: the service's use cases, between the routes and the store."""

import json
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import torch
from anyio import CapacityLimiter, to_thread

from normstream.adaptation import Recipe, StreamState, encode
from normstream.service.deadline import Deadline
from normstream.service.engine import Engine
from normstream.service.errors import Conflict, Problem, invalid
from normstream.service.models import Models, available_cores
from normstream.service.settings import Settings
from normstream.service.states import States, admitted, decoded, initial, split
from normstream.service.storage.blob_shelf import Blob
from normstream.service.storage.records import Conflict as StoreConflict
from normstream.service.storage.records import Event, SnapshotRecord, StreamRecord, UnknownStream
from normstream.service.storage.store import Store
from normstream.service.turns import Turns

COMMIT_ATTEMPTS = 5


class Streams:
    """The streams of all models. Every method may raise a `Problem` or a `StoreError`, and then has changed nothing.

    Attributes:
        models: That streams are made for.
        store: Where they are.
        states: Theirs, from the store's records.
        turns: The order of their requests.
        decoders: Bounds the threads that decode images and states.
    """

    def __init__(self, models: Models, store: Store, settings: Settings) -> None:
        self.models = models
        self.store = store
        self.decoders = CapacityLimiter(available_cores())
        self.states = States(store.learnt, torch.device(settings.device), settings.cache_bytes, self.decoders)
        self._settings = settings
        self.turns = Turns()

    def admit(self, recipe: Recipe) -> None:
        """Refuse a recipe of which one lesson might fill the machine's memory.

        Raises:
            Invalid: when a pass may have more images than the settings allow.
        """
        if (images := recipe.lesson_images) > (most := self._settings.max_lesson):
            raise invalid(
                "body.recipe",
                f"a pass of its lessons may have {images} images, and this server takes {most}; lower batch"
                " (and replay.batch), or raise NORMSTREAM_MAX_LESSON",
            )

    async def create(
        self, stream_id: str | None, model: str | None, recipe: Recipe, idle_ttl_s: float | None
    ) -> tuple[StreamRecord, bool]:
        """Make a stream, or find it if it is there with the same model and recipe; says whether it was made."""
        state = await self.initial(model or self.models.default, recipe)
        rest, learnt = await self._split(state)
        record, made = await self.store.create(
            stream_id or f"stream-{secrets.token_hex(8)}",
            model=state.model,
            fingerprint=state.fingerprint,
            recipe=recipe.canonical(),
            state=rest,
            learnt=learnt or b"",
            idle_ttl_s=idle_ttl_s,
        )
        if (record.model, record.recipe) == (state.model, recipe.canonical()):
            self.engine(record)  # Of the same weights too.
        else:
            raise Conflict(
                f"Stream {record.id!r} exists with model {record.model!r} and recipe {record.recipe}, not"
                f" {state.model!r} and {recipe.canonical()}. Choose another id, or delete it first."
            )
        return record, made

    async def initial(self, model: str, recipe: Recipe) -> StreamState:
        """The state of a stream that has seen nothing; refused when the model cannot follow the recipe."""
        return await self.models[model].do(initial, recipe, self.models.teacher(recipe))

    async def staged(self, stream_id: str, state: StreamState, staging: AsyncExitStack) -> tuple[bytes, Blob | None]:
        """A state as a commit takes it: what was learnt is put down in the store, for as long as `staging` is open."""
        rest, learnt = await self._split(state)
        if learnt is None:
            return rest, None
        async with Deadline(self._settings.request_timeout_s).kept():
            return rest, await staging.enter_async_context(self.store.staged(stream_id, learnt))

    async def _split(self, state: StreamState) -> tuple[bytes, bytes | None]:
        return await to_thread.run_sync(split, state, limiter=self.decoders)

    async def reset(self, stream_id: str) -> StreamRecord:
        """Back to the source: nothing of what the stream has seen stays."""

        async def source(record: StreamRecord) -> StreamState:
            recipe = _recipe_of(record)
            return await self.engine(record).do(initial, recipe, self.models.teacher(recipe))

        return await self._replace(stream_id, source, "reset", forget=True)

    async def restore(self, stream_id: str, snapshot_id: str) -> StreamRecord:
        """Put a snapshot's state in place of the stream's; it must be of the same model and recipe."""
        snapshot = await self.store.snapshot(snapshot_id)

        async def kept(record: StreamRecord) -> StreamState:
            recipe = _recipe_of(record)
            return await self.engine(record).do(admitted, snapshot.state, recipe, self.models.teacher(recipe))

        return await self._replace(stream_id, kept, "restore")

    async def fork(self, stream_id: str, new_id: str | None) -> StreamRecord:
        """Another stream that begins with a copy of this one's state."""
        async with self.turn(stream_id):
            for _ in range(COMMIT_ATTEMPTS):
                with suppress(StoreConflict):
                    return await self.store.fork(stream_id, new_id or f"{stream_id[:100]}-{secrets.token_hex(4)}")
        raise contended(stream_id)

    async def delete(self, stream_id: str) -> None:
        """Forget a stream, after the requests that it has waiting."""
        async with self.turn(stream_id):
            await self.store.delete(stream_id)
            self.states.drop(stream_id)

    async def snapshot(self, stream_id: str) -> SnapshotRecord:
        """Keep a copy of the state; it outlives the stream."""
        async with self.turn(stream_id):
            record, state = await self.loaded(stream_id)
        whole = await to_thread.run_sync(encode, state, limiter=self.decoders)
        snapshot = _snapshot(f"snap-{secrets.token_hex(8)}", record.id, record.model, state, whole)
        await self.store.put_snapshot(snapshot)
        return snapshot

    async def upload_snapshot(self, snapshot_id: str, data: bytes) -> tuple[SnapshotRecord, bool]:
        """Keep a state that was downloaded before; says whether it is new here."""
        state = decoded(data)
        engine = self._engine_with(state)
        await engine.do(admitted, data, state.recipe, self.models.teacher(state.recipe))
        record = _snapshot(snapshot_id, None, engine.hosted.name, state, data)
        if await self.store.put_snapshot(record):
            return record, True
        found = await self.store.snapshot(snapshot_id)
        if found.state != data:
            raise Conflict(f"There is another snapshot {snapshot_id!r}. Choose another id, or delete it first.")
        return found, False

    async def loaded(self, stream_id: str, generation: str | None = None) -> tuple[StreamRecord, StreamState]:
        """A stream as it is now, and its state.

        Raises:
            UnknownStream: when it is another than that of the generation, if given.
        """
        for _ in range(COMMIT_ATTEMPTS):
            record, _ = await self.store.load(stream_id)
            if generation not in {None, record.generation}:
                raise UnknownStream(stream_id)
            with suppress(StoreConflict):  # Another server taught it meanwhile.
                return record, await self.states.of(record)
        raise contended(stream_id)

    def engine(self, record: StreamRecord) -> Engine:
        """The engine of a stream's model."""
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
        forget: bool = False,
    ) -> StreamRecord:
        made_for, learnt = None, None
        async with self.turn(stream_id), AsyncExitStack() as staging:
            for _ in range(COMMIT_ATTEMPTS):
                record, _ = await self.store.load(stream_id)
                waiting = await self.store.samples.ids(stream_id) if forget else []
                if learnt is not None and learnt.tag == record.learnt_tag:
                    return record  # It was written, and its reply lost; others have moved the stream since.
                if made_for != record.generation:
                    await staging.aclose()
                    state = await make(record)
                    rest, learnt = await self.staged(stream_id, state, staging)
                    made_for = record.generation
                data = json.dumps({"step": state.step, "version": record.version + 1}).encode()
                with suppress(StoreConflict):
                    record = await self.store.commit(
                        record,
                        state=rest,
                        step=state.step,
                        learnt=learnt,
                        scores=b"" if forget else None,
                        events=[Event(event, data)],
                        dropped=waiting,
                        forget_unlabelled=forget,
                    )
                    if state.learnt is not None:
                        self.states.keep(record, state.learnt)
                    return record
        raise contended(stream_id)

    @asynccontextmanager
    async def turn(self, stream_id: str) -> AsyncIterator[None]:
        """A stream's turn, for as long as the block lasts; what came before it is done first."""
        deadline = Deadline(self._settings.request_timeout_s)
        async with self.turns.ticket(stream_id) as turn:
            async with deadline.kept():
                await turn()
            yield


def contended(stream_id: str) -> Problem:
    """The problem of a stream that changed whenever something was to be put into it."""
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


def _recipe_of(record: StreamRecord) -> Recipe:
    try:
        return Recipe.parse(record.recipe)
    except ValueError as error:
        raise Conflict(
            f"The recipe of stream {record.id!r} is of another version of this server ({error}). Delete the stream and"
            " make it anew."
        ) from None
