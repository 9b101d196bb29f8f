"""Predictions whose labels may come, and labels that came, against a real server."""

import asyncio
import random
from contextlib import suppress
from itertools import count

import psutil
import pytest
from stores import STEP, Line, create, step

from normstream.service.storage import unlabelled_shelf
from normstream.service.storage.records import (
    Conflict,
    Event,
    Labelled,
    Replay,
    StoreUnavailable,
    UnknownStream,
    Unlabelled,
)
from normstream.service.storage.redis_link import connect


def predicted(*ids, data=b""):
    return [Unlabelled(each, "cat", 0.25, data) for each in ids]


async def kept(store, *ids):
    """The text of each that is found: the answer, or the label."""
    found = await store.unlabelled("gate", ids)
    return {each: entry.label if isinstance(entry, Labelled) else entry.answer for each, entry in found.items()}


async def held(store, stream_id="gate"):
    """How many the server holds for a stream, and the size of the predictions, as it counts them; both are checked."""
    entries, order, size, labels = store._keys.unlabelled(stream_id)
    async with store._link.reach() as redis:
        values = await redis.hgetall(entries)
        predictions, labelled = set(await redis.zrange(order, 0, -1)), set(await redis.zrange(labels, 0, -1))
        counted = int(await redis.get(size) or 0)
    assert predictions | labelled == set(values)
    assert not predictions & labelled
    assert counted == sum(len(values[each]) for each in predictions)
    return len(values), counted


# What is kept


async def test_predictions_are_found_until_their_labels_come(store, worker):
    record, _ = await create(store)
    first = Unlabelled("a-0", "cat", 0.1 + 0.2, bytes(range(256)))
    second = Unlabelled("b-0", "tabby, tabby cat", 1.0)
    record = await step(store, record, predicted=[first])
    await store.remember(record, None, None, [second])
    assert await worker.unlabelled("gate", ["a-0", "b-0", "c-0"]) == {"a-0": first, "b-0": second}
    record = await step(worker, record, labelled=[("a-0", "dog"), ("new-0", "Füchse 🦊")])
    assert await store.unlabelled("gate", ["new-0", "b-0", "a-0"]) == {
        "a-0": Labelled("a-0", "dog"),
        "b-0": second,
        "new-0": Labelled("new-0", "Füchse 🦊"),
    }
    count, size = await held(store)
    assert count == 3
    assert size < 200  # the data went with the label


@pytest.mark.parametrize("sample_id", ["", "bytes", "order", "ü 🦊", "x" * 1000, '"},{', "a\nb\0c"])
@pytest.mark.parametrize("text", ["", "x" * 1000, "nul\0"])
async def test_any_id_and_any_text_will_do(store, sample_id, text):
    entry = Unlabelled(sample_id, text, 0.5, b"\0data")
    record = await step(store, (await create(store))[0], predicted=[entry])
    assert await store.unlabelled("gate", [sample_id]) == {sample_id: entry}
    await step(store, record, labelled=[(sample_id, text)])
    assert await store.unlabelled("gate", [sample_id]) == {sample_id: Labelled(sample_id, text)}


async def test_no_id_is_unknown_and_nothing_asked_is_nothing_found(store):
    await create(store)
    assert await store.unlabelled("gate", ["a-0"]) == await store.unlabelled("gate", []) == {}
    assert await store.unlabelled("no", ["a-0"]) == {}


async def test_an_answer_and_its_predictions_are_kept_together(store, worker):
    record, _ = await create(store)
    await store.remember(record, "key", Replay("digest", b"answer"), predicted("a-0"))
    assert (await worker.load("gate", "key"))[1] == Replay("digest", b"answer")
    record = await step(store, record, replay=("key", Replay("digest", b"next")), predicted=predicted("b-0", "b-1"))
    assert await worker.load("gate", "key") == (record, Replay("digest", b"next"))
    assert list(await kept(worker, "a-0", "b-0", "b-1")) == ["a-0", "b-0", "b-1"]
    await store.remember(record, "key", Replay("digest", b"last"))
    assert (await worker.load("gate", "key"))[1] == Replay("digest", b"last")


async def test_a_commit_that_comes_too_late_keeps_and_forgets_nothing(store, worker):
    record, _ = await create(store)
    await step(worker, record, predicted=predicted("a-0"))
    for rest in ({"labelled": [("a-0", "dog")]}, {"predicted": predicted("b-0")}, {"forget_unlabelled": True}):
        with pytest.raises(Conflict):
            await step(store, record, **rest)
    assert await kept(store, "a-0", "b-0") == {"a-0": "cat"}


async def test_of_two_that_label_the_same_one_counts(store, worker):
    record = await step(store, (await create(store))[0], predicted=predicted("a-0"))
    calls = [step(each, record, labelled=[("a-0", label)]) for each, label in ((store, "dog"), (worker, "fox"))]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert sorted(type(each).__name__ for each in outcomes) == ["Conflict", "StreamRecord"]
    won = "dog" if isinstance(outcomes[1], Conflict) else "fox"
    assert await kept(store, "a-0") == {"a-0": won}


async def test_a_label_of_an_image_predicted_in_the_same_commit_is_what_stays(store):
    record, _ = await create(store)
    await step(store, record, predicted=predicted("a-0", "a-1", data=b"image"), labelled=[("a-1", "dog")])
    assert await kept(store, "a-0", "a-1") == {"a-0": "cat", "a-1": "dog"}
    assert (await held(store))[0] == 2


async def test_a_commit_does_all_it_is_asked_for_at_once(store, worker):
    record = await step(store, (await create(store, idle_ttl_s=60, learnt=b"network"))[0], predicted=predicted("a-0"))
    watcher = await worker.events("gate")
    await store.samples.add("gate", "e", [("1", b"image", 0.0), ("2", b"image", 0.0), ("3", b"image", 0.0)])
    new = await step(
        store,
        record,
        learnt=b"more",
        scores=b"1/1",
        events=[STEP, Event("learnt", b"{}")],
        replay=("key", Replay("digest", b"answer")),
        used=["e/1"],
        dropped=["e/2"],
        predicted=predicted("b-0"),
        labelled=[("a-0", "dog")],
    )
    assert await worker.load("gate", "key") == (new, Replay("digest", b"answer"))
    assert await kept(worker, "a-0", "b-0") == {"a-0": "dog", "b-0": "cat"}
    assert await worker.samples.ids("gate") == ["e/3"]
    assert [(await anext(watcher)).type for _ in range(2)] == ["step", "learnt"]
    await watcher.aclose()


# For how long


async def test_each_is_kept_for_its_time_and_its_label_for_as_long_again(make_store):
    now = [1000.0]
    store = make_store(clock=lambda: now[0], label_ttl_s=60)
    record = await step(store, (await create(store))[0], predicted=predicted("a-0", "a-1"))
    now[0] = 1040.0
    record = await step(store, record, labelled=[("a-1", "dog")])
    await store.remember(record, None, None, predicted("b-0"))
    now[0] = 1059.9
    assert await kept(store, "a-0", "a-1", "b-0") == {"a-0": "cat", "a-1": "dog", "b-0": "cat"}
    now[0] = 1060.1
    assert await kept(store, "a-0", "a-1", "b-0") == {"a-1": "dog", "b-0": "cat"}
    assert (await held(store))[0] == 3
    await store.remember(record, None, None, predicted("c-0"))
    assert (await held(store))[0] == 3  # what expired left when something came
    now[0] = 1100.1
    assert await kept(store, "a-1", "b-0", "c-0") == {"c-0": "cat"}


async def test_those_of_an_idle_stream_leave_by_themselves(make_store, redis_url, eventually):
    store = make_store(label_ttl_s=60)
    record = await step(store, (await create(store))[0], predicted=predicted("a-0"), labelled=[("l-0", "dog")])
    async with connect(redis_url) as redis:

        async def left_ms():
            return [await redis.pttl(key) for key in store._keys.unlabelled("gate")]

        async def shorten(left_ms):
            for key in store._keys.unlabelled("gate"):
                await redis.pexpire(key, left_ms)

        assert all(30_000 < left <= 60_000 for left in await left_ms())
        await shorten(20_000)
        await store.remember(record, None, None, predicted("b-0"))
        assert all(30_000 < left <= 60_000 for left in await left_ms())
        await shorten(1)
        await eventually(lambda: _none_of(redis, store._keys.unlabelled("gate")))
    await step(store, record, predicted=predicted("c-0"))
    assert (await held(store))[0] == 1


async def _none_of(redis, keys):
    return await redis.exists(*keys) == 0


async def test_with_no_time_none_is_kept(make_store, redis_url):
    store = make_store(label_ttl_s=0)
    record = await step(store, (await create(store))[0], predicted=predicted("a-0"), labelled=[("b-0", "dog")])
    await store.remember(record, None, None, predicted("c-0"))
    await store.remember(record, "key", Replay("digest", b"answer"), predicted("d-0"))
    assert (await store.load("gate", "key"))[1] == Replay("digest", b"answer")
    async with connect(redis_url) as redis:
        assert await redis.exists(*store._keys.unlabelled("gate")) == 0


# How many


async def test_when_they_are_too_many_the_oldest_go(make_store):
    clock = count(1000.0)
    store = make_store(max_unlabelled=3, clock=lambda: next(clock))
    record = await step(store, (await create(store))[0], predicted=predicted("z-1", "z-0"))
    await store.remember(record, None, None, predicted("a-0", "a-1"))
    assert list(await kept(store, "z-0", "z-1", "a-0", "a-1")) == ["z-0", "a-0", "a-1"]
    await store.remember(record, None, None, predicted(*(f"c-{number}" for number in (3, 2, 1, 0))))
    assert list(await kept(store, *(f"c-{number}" for number in range(4)))) == ["c-0", "c-1", "c-2"]
    assert (await held(store))[0] == 3


@pytest.mark.parametrize("bounds", [{"max_unlabelled": 2}, {"max_unlabelled_bytes": 100}, {"max_unlabelled_bytes": 0}])
async def test_no_number_of_predictions_takes_a_label_s_place(make_store, bounds):
    clock = count(1000.0)
    store = make_store(**bounds, clock=lambda: next(clock))
    record = await step(store, (await create(store))[0], predicted=predicted("a-0"))
    record = await step(store, record, labelled=[("a-0", "dog"), ("mine", "fox")])
    for number in range(9):
        await store.remember(record, None, None, predicted(f"b-{number}", data=b"x" * 30))
    assert await kept(store, "a-0", "mine", "b-0") == {"a-0": "dog", "mine": "fox"}


async def test_labels_have_a_bound_of_their_own(make_store, monkeypatch):
    monkeypatch.setattr(unlabelled_shelf, "_MOST_LABELS", 3)
    clock = count(1000.0)
    store = make_store(clock=lambda: next(clock))
    record = await step(store, (await create(store))[0], predicted=predicted("a-0"))
    for number in range(5):
        record = await step(store, record, labelled=[(f"b-{number}", "dog")])
    assert list(await kept(store, "a-0", *(f"b-{number}" for number in range(5)))) == ["a-0", "b-2", "b-3", "b-4"]
    assert (await held(store))[0] == 4


async def test_when_they_are_too_large_the_oldest_go(make_store):
    clock = count(1000.0)
    store = make_store(max_unlabelled_bytes=1000, clock=lambda: next(clock))
    record, _ = await create(store)
    for number in range(5):
        await store.remember(record, None, None, predicted(f"{number}", data=b"x" * 300))
    assert list(await kept(store, *map(str, range(5)))) == ["2", "3", "4"]
    record = await step(store, record, labelled=[("3", "dog")])
    await store.remember(record, None, None, predicted("5", data=b"x" * 300))
    assert await kept(store, *map(str, range(6))) == {"2": "cat", "3": "dog", "4": "cat", "5": "cat"}
    await store.remember(record, None, None, predicted("huge", data=b"x" * 1001))
    assert await held(store) == (1, 0)


async def test_they_are_counted_rightly_whatever_comes(make_store):
    dice = random.Random(7)
    clock = count(1000.0)
    store = make_store(clock=lambda: next(clock), label_ttl_s=40, max_unlabelled=20, max_unlabelled_bytes=3000)
    record, _ = await create(store)
    most = 0
    for _ in range(150):
        ids = [str(dice.randrange(60)) for _ in range(dice.randrange(8))]
        entries = [Unlabelled(each, "cat", 0.5, b"x" * dice.randrange(400)) for each in ids[::2]]
        if dice.random() < 0.5:
            await store.remember(record, None, None, entries)
        else:
            labels = [(each, "dog" * dice.randrange(9)) for each in ids[1::2]]
            forget = dice.random() < 0.1
            record = await step(store, record, predicted=entries, labelled=labels, forget_unlabelled=forget)
        entries_held, size = await held(store)
        assert entries_held <= 20 + 60
        assert size <= 3000
        most = max(most, entries_held)
    assert most > 10


async def test_a_request_may_have_more_of_them_than_lua_takes_at_once(make_store):
    store = make_store(max_unlabelled=9000, timeout_s=20)
    ids = [f"a-{number}" for number in range(10_000)]
    record = await step(store, (await create(store))[0], predicted=predicted(*ids))
    assert list(await kept(store, *ids)) == ids[1000:]
    await step(store, record, labelled=[(each, "dog") for each in ids])
    assert await held(store) == (10_000, 0)


# Whose they are


async def test_they_are_their_streams_alone(store):
    record, _ = await create(store)
    other, _ = await create(store, "other")
    await step(store, record, predicted=predicted("a-0"))
    assert await store.unlabelled("other", ["a-0"]) == {}
    await step(store, other, labelled=[("a-0", "dog")])
    assert await kept(store, "a-0") == {"a-0": "cat"}
    await store.fork("gate", "fork")
    assert await store.unlabelled("fork", ["a-0"]) == {}


async def test_they_go_with_their_stream(store, worker, redis_url):
    record = await step(store, (await create(store))[0], predicted=predicted("a-0"))
    await worker.delete("gate")
    async with connect(redis_url) as redis:
        assert await redis.exists(*store._keys.unlabelled("gate")) == 0
    await store.remember(record, None, None, predicted("b-0"))
    with pytest.raises(UnknownStream):
        await step(store, record, predicted=predicted("b-0"))
    await create(store)
    await store.remember(record, None, None, predicted("b-0"))
    with pytest.raises(Conflict):
        await step(store, record, labelled=[("b-0", "dog")])
    assert await kept(store, "a-0", "b-0") == {}


async def test_a_successor_of_a_stream_that_expired_has_none_of_them(store):
    record, _ = await create(store, idle_ttl_s=0.1)
    await step(store, record, predicted=predicted("a-0"))
    await asyncio.sleep(0.15)
    new, made = await create(store)
    assert made
    assert await kept(store, "a-0") == {}
    await step(store, new, predicted=predicted("b-0"))
    assert not (await create(store))[1]
    assert await kept(store, "a-0", "b-0") == {"b-0": "cat"}
    assert (await held(store))[0] == 1


async def test_they_are_forgotten_when_that_is_asked_for(store, worker):
    record = await step(store, (await create(store))[0], predicted=predicted("a-0"), labelled=[("b-0", "dog")])
    record = await step(store, record, forget_unlabelled=True)
    assert await kept(worker, "a-0", "b-0") == {}
    record = await step(store, record, predicted=predicted("c-0"))
    await step(store, record, forget_unlabelled=True, predicted=predicted("d-0"))
    assert await kept(worker, "c-0", "d-0") == {"d-0": "cat"}
    assert (await held(store))[0] == 1


# When Redis fails


async def test_what_was_sent_twice_counts_once(make_store, redis_url, data):
    async with Line(redis_url, data.with_name("line.sock")) as line:
        store = make_store(line.url)
        record = await step(store, (await create(store))[0], predicted=predicted("warm-0"))
        await store.remember(record, None, None, predicted("warm-1"))
        line.arm()
        await store.remember(record, None, None, predicted("a-0", "a-1", data=b"image"))
        assert line.cut.is_set()
        assert (await held(store))[0] == 4
        line.cut.clear()
        line.arm()
        record = await step(store, record, predicted=predicted("b-0", data=b"image"), labelled=[("a-0", "dog")])
        assert line.cut.is_set()
        assert await kept(store, "a-0", "a-1", "b-0") == {"a-0": "dog", "a-1": "cat", "b-0": "cat"}
        assert (await held(store))[0] == 5


async def test_out_of_memory_is_said_and_keeps_nothing_by_halves(make_store, own_redis):
    store = make_store(own_redis.url)
    record, _ = await create(store)
    await store.remember(record, None, None, predicted("a-0"))
    async with connect(own_redis.url) as redis:
        await redis.config_set("maxmemory", 1)
        for write in (
            step(store, record, predicted=predicted("b-0"), forget_unlabelled=True),
            store.remember(record, None, None, predicted("b-0", "b-1")),
            store.remember(record, "key", Replay("d", b"a"), predicted("b-0")),
        ):
            with pytest.raises(StoreUnavailable, match="no memory left"):
                await write
        assert await kept(store, "a-0", "b-0", "b-1") == {"a-0": "cat"}
        assert await store.load("gate", "key") == (record, None)
        await redis.config_set("maxmemory", 0)
    assert (await held(store))[0] == 1


async def test_when_the_server_is_killed_lessons_are_there_whole_or_not_at_all(make_store, own_redis, eventually):
    store = make_store(own_redis.url)
    record, _ = await create(store, learnt=b"0" * 50_000)
    async with connect(own_redis.url) as redis:
        server = psutil.Process((await redis.info("server"))["process_id"])
    promised = 0

    async def teach():
        nonlocal record, promised
        while server.is_running():
            lesson = promised + 1
            learnt, labels = str(lesson % 10).encode() * 50_000, [(f"{lesson}-{n}", "dog") for n in range(10)]
            record = await step(store, record, learnt=learnt, scores=b"%d" % lesson, labelled=labels)
            promised = lesson

    teaching = asyncio.ensure_future(teach())
    await eventually(lambda: promised > 20)
    server.kill()
    with suppress(StoreUnavailable):  # unless the next server was there soon enough
        await teaching
    found, _ = await eventually(lambda: make_store(own_redis.url).load("gate"))
    last = int(found.scores)
    assert last in (promised, promised + 1)
    assert found.step == last
    assert await make_store(own_redis.url).learnt(found) == str(last % 10).encode() * 50_000
    ids = [f"{lesson}-{n}" for lesson in (last, last + 1) for n in range(10)]
    assert list(await kept(store, *ids)) == ids[:10]
    assert (await held(store))[0] == 10 * last
