"""Learning in the background: in turns, once, whatever fails."""

import asyncio
import json
import random
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from edges import BATCH, KEY, EdgeApi, crop, crops, taught
from redis import Redis
from servers import Api, Live, Process, new_id, tiny_checkpoint, until

from normstream.adaptation import ModelSpec, Recipe, TeachingReport, decode, encode, initial_state
from normstream.service import teaching
from normstream.service.models import Models, hosting
from normstream.service.settings import Settings
from normstream.service.storage.embedded_redis import EmbeddedRedis
from normstream.service.storage.keyspace import Keyspace
from normstream.service.storage.records import Event, StoreUnavailable, Tally
from normstream.service.storage.store import Store
from normstream.service.teaching import ATTEMPTS, Classroom

DAY_S = 86400.0


@pytest.fixture
async def models(tiny_models: tuple[ModelSpec, ModelSpec]) -> AsyncIterator[Models]:
    async with hosting(Settings(models=tiny_models)) as hosted:
        yield hosted


def classroom(models: Models, store: Store, ttl_s: float = DAY_S) -> Classroom:
    return Classroom(models, store, asyncio.Event(), asyncio.Event(), ttl_s)


async def pupil(models: Models, store: Store, stream_id: str, recipe: dict[str, Any] | None = None) -> None:
    """A stream that has learnt nothing."""
    parsed = Recipe.model_validate(recipe or taught())
    state = initial_state(models["tiny"].hosted, parsed, models.teacher(parsed))
    known = {"model": state.model, "fingerprint": state.fingerprint, "recipe": parsed.canonical()}
    await store.create(stream_id, state=encode(state), **known)


async def upload(store: Store, stream_id: str, count: int, start: int = 0) -> None:
    samples = [(f"{number}", crop(number), time.time()) for number in range(start, start + count)]
    await store.samples.add(stream_id, "e", samples)


async def tally(store: Store, stream_id: str) -> Tally:
    return (await store.samples.tally([(stream_id, "e")]))[0]


async def lessons(store: Store, *streams: str) -> list[int]:
    return [(await store.peek(each)).step for each in streams]


async def events(store: Store, stream_id: str) -> list[tuple[str, dict[str, Any]]]:
    """All that happened so far."""
    found = []
    watch = await store.events(stream_id, "0-0")
    try:
        async with asyncio.timeout(0.3):
            while True:
                event = await anext(watch)
                found.append((event.type, json.loads(event.data)))
    except TimeoutError:
        pass
    await watch.aclose()
    return found


# What is due


async def test_a_full_batch_is_learnt_from_and_the_rest_waits(models: Models, store: Store) -> None:
    await pupil(models, store, "gate")
    await upload(store, "gate", BATCH + 1)
    room = classroom(models, store)
    assert await room.turn() is True
    assert await room.turn() is False
    assert await tally(store, "gate") == Tally(received=5, used=4)
    assert [each.partition("/")[2] for each in await store.samples.ids("gate")] == ["4"]
    ((kind, told),) = await events(store, "gate")
    assert kind == "taught"
    assert (told["step"], told["version"], told["samples"], told["replayed"]) == (1, 2, 4, 0)
    assert (told["replay_images"], told["discarded"], told["reason"]) == (4, False, None)
    assert told.keys() >= {"student_loss", "teacher_loss", "teacher_entropy", "replay_bytes"}
    record, _ = await store.load("gate")
    assert decode(record.state).step == record.step == 1


async def test_a_part_of_a_batch_is_learnt_from_when_it_has_waited(models: Models, store: Store) -> None:
    await pupil(models, store, "patient")
    await pupil(models, store, "hasty", taught(patience_s=0.0))
    for each in ("patient", "hasty"):
        await upload(store, each, 1)
    room = classroom(models, store)
    while await room.turn():
        pass
    assert await lessons(store, "patient", "hasty") == [0, 1]


async def test_who_was_taught_longest_ago_comes_first(models: Models, store: Store) -> None:
    for stream, batches in {"busy": 3, "quiet": 1, "third": 1}.items():
        await pupil(models, store, stream)
        await upload(store, stream, batches * BATCH)
    room, order = classroom(models, store), []
    while await room.turn():
        seen = dict(zip(("busy", "quiet", "third"), await lessons(store, "busy", "quiet", "third"), strict=True))
        order.append(seen)
    assert order[0] == {"busy": 1, "quiet": 0, "third": 0}
    assert order[2] == {"busy": 1, "quiet": 1, "third": 1}
    assert order[4] == {"busy": 3, "quiet": 1, "third": 1}
    await upload(store, "busy", BATCH, start=100)
    await upload(store, "quiet", BATCH, start=100)
    await room.turn()
    assert await lessons(store, "busy", "quiet") == [3, 2]


async def test_old_samples_are_dropped_unlearnt(models: Models, make_store: Any) -> None:
    old, store = make_store(clock=lambda: time.time() - 100), make_store()
    await pupil(models, store, "gate")
    await upload(old, "gate", BATCH)
    await upload(store, "gate", 1, start=50)
    assert await classroom(models, store, ttl_s=50).turn() is False
    assert await tally(store, "gate") == Tally(received=5, dropped=4)


async def test_streams_of_others_are_left_to_them(
    models: Models, store: Store, tiny_models: tuple[ModelSpec, ModelSpec]
) -> None:
    """This server hosts no teacher; and a stream whose model has other weights by now waits for those."""
    await pupil(models, store, "gate")
    await upload(store, "gate", BATCH)
    async with hosting(Settings(models=tiny_models[:1])) as poor:
        assert await classroom(poor, store).turn() is False
    swapped = tuple(
        ModelSpec(**{**spec.model_dump(), "name": name})
        for spec, name in zip(tiny_models, ("other", "tiny"), strict=True)
    )
    async with hosting(Settings(models=swapped)) as foreign:
        assert await classroom(foreign, store).turn() is False
    assert await tally(store, "gate") == Tally(received=4)
    assert await classroom(models, store).turn() is True


# Several servers


async def test_two_servers_on_one_store_learn_from_each_sample_once(models: Models, make_store: Any) -> None:
    stores = [make_store(), make_store()]
    streams = [f"s{number}" for number in range(3)]
    for stream in streams:
        await pupil(models, stores[0], stream)
        await upload(stores[0], stream, 2 * BATCH)

    async def work(store: Store) -> None:
        room = classroom(models, store)
        while (await tally(store, streams[0])).pending or await store.samples.waiting():
            if not await room.turn():
                await asyncio.sleep(0.01)

    await asyncio.gather(*map(work, stores))
    assert await lessons(stores[0], *streams) == [2, 2, 2]
    assert [await tally(stores[0], stream) for stream in streams] == [Tally(received=8, used=8)] * 3


async def test_a_lesson_that_was_overtaken_does_not_count(
    models: Models, store: Store, worker: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another server resets the stream while this one learns."""
    await pupil(models, store, "gate")
    await upload(store, "gate", BATCH)
    commit = store.commit

    async def overtaken(record: Any, **rest: Any) -> Any:
        monkeypatch.setattr(store, "commit", commit)
        other, _ = await worker.load("gate")
        await worker.commit(other, state=other.state, step=0, events=[Event("reset", b"{}")])
        return await commit(record, **rest)

    monkeypatch.setattr(store, "commit", overtaken)
    room = classroom(models, store)
    assert await room.turn() is True
    assert await tally(store, "gate") == Tally(received=4)
    assert await lessons(store, "gate") == [0]
    assert await room.turn() is True
    assert await tally(store, "gate") == Tally(received=4, used=4)


async def test_a_lesson_stands_though_labels_were_counted_meanwhile(
    models: Models, store: Store, worker: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    await pupil(models, store, "gate")
    await upload(store, "gate", BATCH)
    commit = store.commit

    async def while_labels_come(record: Any, **rest: Any) -> Any:
        monkeypatch.setattr(store, "commit", commit)
        other, _ = await worker.load("gate")
        await worker.commit(other, state=None, step=other.step, scores=b"[]\n")
        return await commit(record, **rest)

    monkeypatch.setattr(store, "commit", while_labels_come)
    assert await classroom(models, store).turn() is True
    assert await tally(store, "gate") == Tally(received=4, used=4)
    record, _ = await store.load("gate")
    assert (record.step, record.version, record.scores) == (1, 3, b"[]\n")
    ((_, told),) = await events(store, "gate")
    assert told["version"] == 3


async def test_a_stream_whose_lessons_are_overtaken_holds_up_no_other(
    models: Models, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for stream in ("moving", "still"):
        await pupil(models, store, stream)
        await upload(store, stream, 2 * BATCH)
    commit = store.commit

    async def overtaken(record: Any, **rest: Any) -> Any:
        if record.id == "moving":
            await commit(record, state=record.state, step=record.step)  # a prediction
        return await commit(record, **rest)

    monkeypatch.setattr(store, "commit", overtaken)
    room = classroom(models, store)
    for _ in range(4):
        assert await room.turn() is True
    assert await lessons(store, "moving", "still") == [0, 2]


async def test_a_lease_is_held_for_as_long_as_a_lesson_takes(
    models: Models, store: Store, worker: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teaching, "LEASE_S", 0.06)
    renewed = asyncio.Event()
    renew = store.samples.renew

    async def noted(stream_id: str) -> None:
        await renew(stream_id)
        renewed.set()

    monkeypatch.setattr(store.samples, "renew", noted)
    room = classroom(models, store)
    async with store.samples.lease("gate") as leased, room._held("gate"):
        assert leased
        await asyncio.wait_for(renewed.wait(), 10)
        async with worker.samples.lease("gate") as second:
            assert not second


# What fails


async def test_a_lesson_that_fails_harms_no_other_stream_and_is_given_up(models: Models, store: Store) -> None:
    for stream in ("bad", "good"):
        await pupil(models, store, stream)
    await store.samples.add("bad", "e", [(f"{number}", b"no image", 1.0) for number in range(BATCH)])
    await upload(store, "good", 2 * BATCH)
    room = classroom(models, store)
    while await room.turn():
        pass
    assert await tally(store, "bad") == Tally(received=4, dropped=4)
    assert await tally(store, "good") == Tally(received=8, used=8)
    assert await lessons(store, "bad", "good") == [0, 2]
    alarms = await events(store, "bad")
    assert [kind for kind, _ in alarms] == ["alarm"] * ATTEMPTS
    assert {told["alarm"] for _, told in alarms} == {"lesson_failed"}
    assert "0" in alarms[0][1]["reason"]
    await upload(store, "bad", BATCH, start=100)
    assert await room.turn() is True
    assert (await tally(store, "bad")).used == BATCH


async def test_a_state_that_is_damaged_fails_alone(models: Models, store: Store) -> None:
    recipe = Recipe.model_validate(taught())
    await store.create(
        "bad", model="tiny", fingerprint=models["tiny"].hosted.fingerprint, recipe=recipe.canonical(), state=b"damaged"
    )
    await upload(store, "bad", BATCH)
    room = classroom(models, store)
    for _ in range(ATTEMPTS):
        assert await room.turn() is True
    assert await room.turn() is False
    assert await tally(store, "bad") == Tally(received=4, dropped=4)


def test_a_discarded_lesson_is_told_and_raises_an_alarm() -> None:
    report = TeachingReport(4, 0, 4, 100, None, 0.5, 1.5, discarded=True, reason="the student's loss is not finite")
    record = type("Record", (), {"version": 6})()
    (kind, told), (alarm, why) = [(event.type, json.loads(event.data)) for event in teaching._events(record, 3, report)]
    assert (kind, told["discarded"], told["student_loss"]) == ("taught", True, None)
    assert (alarm, why["alarm"], why["step"], why["version"]) == ("alarm", "lesson_discarded", 3, 7)
    assert why["reason"] == report.reason


async def test_it_goes_on_when_the_store_was_away_and_after_a_defect(
    models: Models, own_redis: EmbeddedRedis, make_store: Any, eventually: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(own_redis.url)
    await pupil(models, store, "gate")
    room = classroom(models, store)
    turn, troubles = room.turn, [StoreUnavailable("away"), RuntimeError("defect")]

    async def troubled() -> bool:
        if troubles:
            raise troubles.pop(0)
        return await turn()

    monkeypatch.setattr(room, "turn", troubled)
    monkeypatch.setattr(teaching, "POLL_S", 0.02)
    task = asyncio.create_task(room.run())
    await upload(store, "gate", BATCH)

    async def used() -> bool:
        return (await tally(store, "gate")).used == BATCH

    await eventually(used, limit_s=30)
    room._closing.set()
    await asyncio.wait_for(task, 30)


# With a server around it


@pytest.fixture
def both(serve: Callable[..., Live], tiny_models: tuple[ModelSpec, ModelSpec]) -> Iterator[tuple[Api, Api]]:
    """Two servers on one Redis."""
    with (
        Api(serve(models=tiny_models).url, timeout=60) as first,
        Api(serve(models=tiny_models).url, timeout=60) as second,
    ):
        yield first, second


def test_what_one_server_takes_in_may_be_asked_of_another(both: tuple[Api, Api]) -> None:
    first, second = both
    edge = EdgeApi(first)
    tag = edge.tag
    for number, api in enumerate([first, second] * 4):
        files = [("images", (f"{number}", crop(number)))]
        answer = api.post(f"/v1/edges/{edge.id}/samples", files=files, headers=edge.headers)
        assert answer.status_code == 202
    until(lambda: edge.show()["samples"]["used"] == 8, 60)
    assert first.show(edge.stream)["step"] == 2
    answers = [api.get(f"/v1/edges/{edge.id}/affine", params={"since": tag}, headers=edge.headers) for api in both]
    assert answers[0].headers["ETag"] == answers[1].headers["ETag"]
    assert answers[0].content == answers[1].content


def test_others_are_served_while_a_stream_learns(both: tuple[Api, Api]) -> None:
    api, _ = both
    edge = EdgeApi(api, recipe=taught(batch=1))
    other = api.make(recipe="ema")
    from servers import tensors

    for start in range(0, 24, 8):
        edge.upload(crops(*(f"{number}" for number in range(start, start + 8))))
        assert api.step(other, tensors(1)).status_code == 200
        assert api.step(edge.stream, tensors(1), adapt=False).status_code == 200
    until(lambda: edge.show()["samples"]["pending"] == 0, 100)
    assert api.show(edge.stream)["step"] == edge.show()["samples"]["used"] == 24


@pytest.mark.timeout(400)
def test_a_server_that_is_killed_loses_no_sample_and_learns_from_none_twice(
    tmp_path: Path, redis_url: str, kept: Path
) -> None:
    """With batches of one, lessons and used samples are equal at every moment."""
    edge_id, redis = new_id("e"), Redis.from_url(redis_url)
    keys, stream = Keyspace("normstream"), f"edge-{edge_id}"
    specs = [
        f"name={name},architecture=test_efficientnet,checkpoint={tiny_checkpoint(tmp_path, seed)},classes=7"
        for seed, name in enumerate(("tiny", "other"))
    ]
    options = [word for spec in specs for word in ("--model", spec)]

    def counts() -> tuple[int, int, int]:
        with redis.pipeline() as pipe:
            pipe.hget(keys.stream(stream), "step")
            pipe.hmget(keys.tally(stream), [f"used:{edge_id}", f"received:{edge_id}"])
            pipe.zcard(keys.queue(stream))
            pipe.hlen(keys.images(stream))
            step, (used, received), waiting, images = pipe.execute()
        assert int(step or 0) == int(used or 0)
        assert int(received or 0) == int(used or 0) + waiting
        assert waiting == images
        return int(used or 0), int(received or 0), waiting

    left = []
    with redis:
        for life in range(2):
            server = Process(tmp_path / f"{life}.log", *options, redis_url=redis_url, data=kept)
            try:
                with server.ready(100).api(timeout=60) as api:
                    edge = EdgeApi(api, edge_id, recipe=taught(batch=1))
                    names = [f"{life}-{number}" for number in range(15)]
                    assert edge.upload(crops(*names)).json()["accepted"] == 15
                    until(lambda before=15 * life: counts()[0] > before, 60)
                    time.sleep(random.random() / 5)
                    server.signal(signal.SIGKILL)
                server.wait()
                used, received, waiting = counts()
                left.append(waiting)
                assert received == 15 * (life + 1)
                assert used >= 1
            finally:
                server.kill()
        assert max(left) > 0  # or none was killed in time
        redis.delete(keys.lease(stream))
        server = Process(tmp_path / "last.log", *options, redis_url=redis_url, data=kept)
        try:
            server.ready(100)
            until(lambda: counts() == (30, 30, 0), 100)
            assert KEY not in server.said
        finally:
            server.kill()
