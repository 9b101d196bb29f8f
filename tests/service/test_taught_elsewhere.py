"""Another server teaches a stream, or predicts for it, while this one is at work on it."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from labelling import LEARN, photo
from servers import new_id

from normstream.adaptation import ModelSpec, Recipe
from normstream.service.deadline import Deadline
from normstream.service.errors import Conflict as Contended
from normstream.service.images import Images
from normstream.service.labelling import Labeller
from normstream.service.labels import Label
from normstream.service.models import Models, hosting
from normstream.service.predicting import Predictor
from normstream.service.predictions import Asked, Output
from normstream.service.settings import Settings
from normstream.service.storage.records import Conflict, StreamRecord
from normstream.service.storage.store import Store
from normstream.service.streams import COMMIT_ATTEMPTS, Streams

ASKED = Asked(adapt=False, output=Output.TOPK, top_k=1, npy=False)


@pytest.fixture
def settings(tiny_models: tuple[ModelSpec, ModelSpec]) -> Settings:
    return Settings(models=tiny_models)


@pytest.fixture
async def models(settings: Settings) -> AsyncIterator[Models]:
    async with hosting(settings) as hosted:
        yield hosted


@pytest.fixture
def streams(models: Models, store: Store, settings: Settings) -> Streams:
    return Streams(models, store, settings)


@pytest.fixture
def labeller(streams: Streams, settings: Settings) -> Labeller:
    return Labeller(streams, Predictor(streams, settings), settings)


@pytest.fixture
async def gate(streams: Streams) -> str:
    """A stream that learns."""
    record, _ = await streams.create(new_id(), None, Recipe.model_validate(LEARN), None)
    return record.id


async def teach(labeller: Labeller, stream_id: str, seed: int = 0) -> Any:
    label = Label("labels.0", "owl", None, file=photo(seed), file_place="images.0")
    return await labeller.label(stream_id, [label], learns=True, key=None, deadline=Deadline(30))


def taught_meanwhile(monkeypatch: pytest.MonkeyPatch, streams: Streams, times: int) -> list[str]:
    """Have what was learnt gone so many times when it is to be read; the list has a name for each."""
    gone: list[str] = []
    read = streams.states._read

    async def too_late(record: StreamRecord) -> bytes:
        if len(gone) < times:
            gone.append(record.learnt_tag)
            raise Conflict(record.id)
        return await read(record)

    for holder, name in ((streams.states, "_read"), (streams.store, "learnt")):
        monkeypatch.setattr(holder, name, too_late)
    streams.states.drop(next(iter(streams.states._learnt), ""))
    return gone


OPERATIONS: dict[str, Callable[[Streams, Labeller, Settings, str], Any]] = {
    "predict": lambda streams, _, settings, gate: Predictor(streams, settings).predict(
        gate, Images((photo(0),)), ASKED, None, Deadline(30)
    ),
    "scores": lambda _, labeller, __, gate: labeller.show(gate),
    "labels": lambda _, labeller, __, gate: teach(labeller, gate),
    "snapshot": lambda streams, _, __, gate: streams.snapshot(gate),
    "fork": lambda streams, _, __, gate: streams.fork(gate, None),
}


@pytest.mark.parametrize("name", OPERATIONS)
async def test_who_finds_it_taught_meanwhile_looks_again(
    name: str, streams: Streams, labeller: Labeller, settings: Settings, gate: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = taught_meanwhile(monkeypatch, streams, 2)
    assert await OPERATIONS[name](streams, labeller, settings, gate)
    assert len(gone) == 2


@pytest.mark.parametrize("name", OPERATIONS)
async def test_and_says_so_when_that_never_ends(
    name: str, streams: Streams, labeller: Labeller, settings: Settings, gate: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = await streams.store.peek(gate)
    gone = taught_meanwhile(monkeypatch, streams, 1000)
    with pytest.raises(Contended, match="changed elsewhere all the time"):
        await OPERATIONS[name](streams, labeller, settings, gate)
    assert len(gone) == COMMIT_ATTEMPTS
    assert await streams.store.peek(gate) == before


async def test_a_lesson_beside_another_s_predictions_travels_once(
    streams: Streams, labeller: Labeller, worker: Store, gate: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, staged = streams.store, []
    put, commit = store._blobs._put, store.commit

    async def counted(record: str, blob: Any, data: bytes) -> None:
        staged.append(blob)
        await put(record, blob, data)

    async def late(record: StreamRecord, **changes: Any) -> StreamRecord:
        if record.version < COMMIT_ATTEMPTS:
            found, _ = await worker.load(gate)
            await worker.commit(found, state=found.state, step=found.step)
        return await commit(record, **changes)

    monkeypatch.setattr(store._blobs, "_put", counted)
    monkeypatch.setattr(store, "commit", late)
    assert (await teach(labeller, gate)).labelled == 1
    assert len(staged) == 1
    record, _ = await worker.load(gate)
    assert record.version == 1 + COMMIT_ATTEMPTS
    assert record.learnt_tag == staged[0].tag


async def test_what_is_at_hand_is_what_is_in_the_store(
    streams: Streams, labeller: Labeller, models: Models, settings: Settings, gate: str
) -> None:
    async def lessons() -> int:
        _, mine = await streams.loaded(gate)
        _, stored = await Streams(models, streams.store, settings).loaded(gate)
        assert mine.learnt is not None
        assert stored.learnt is not None
        assert mine.learnt.tensors.keys() == stored.learnt.tensors.keys()
        assert all(value.equal(stored.learnt.tensors[name]) for name, value in mine.learnt.tensors.items())
        return mine.learnt.lessons

    assert await lessons() == 0
    await teach(labeller, gate)
    assert await lessons() == 1
    snapshot = await streams.snapshot(gate)
    await streams.reset(gate)
    assert await lessons() == 0
    await streams.restore(gate, snapshot.id)
    assert await lessons() == 1


@pytest.mark.parametrize("operation", ["reset", "restore"])
async def test_a_reset_that_landed_unheard_is_not_repeated(
    operation: str, streams: Streams, labeller: Labeller, worker: Store, gate: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = await streams.snapshot(gate)
    await teach(labeller, gate)
    commit = streams.store.commit

    async def unheard(record: StreamRecord, **changes: Any) -> StreamRecord:
        new = await commit(record, **changes)
        await worker.commit(new, state=new.state, step=new.step)
        raise Conflict(gate)

    monkeypatch.setattr(streams.store, "commit", unheard)
    record = await (streams.reset(gate) if operation == "reset" else streams.restore(gate, snapshot.id))
    assert record == (await worker.load(gate))[0]
    assert record.version == 4  # made, taught, set back, and moved by another
    assert await worker.learnt(record)
