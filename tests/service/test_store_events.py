"""The events of streams against a real server: what their watchers see, and when they are told of the end."""

import asyncio

import pytest
from stores import STEP, create, step

from normstream.service.storage.records import Conflict, Event, Replay, UnknownStream
from normstream.service.storage.redis_link import connect


async def test_watchers_see_what_comes_and_may_resume(store, worker):
    record, _ = await create(store)
    record = await step(store, record, events=[Event("step", b"0")])
    watcher = await worker.events("gate")
    for number in (1, 2, 3):
        record = await step(store, record, events=[Event("step", b"%d" % number)])
    await step(store, record)
    first, second = await anext(watcher), await anext(watcher)
    await watcher.aclose()
    assert (first.type, first.data, second.data) == ("step", b"1", b"2")
    resumed = await store.events("gate", after=first.id)
    assert [(await anext(resumed)).data for _ in range(2)] == [b"2", b"3"]
    await resumed.aclose()


async def test_a_waiting_watcher_is_told_at_once_and_ends_with_deleted(store, worker):
    await create(store)
    watcher = await worker.events("gate")
    waiting = asyncio.ensure_future(anext(watcher))
    await asyncio.sleep(0.05)
    await store.delete("gate")
    async with asyncio.timeout(1):
        assert (await waiting).type == "deleted"
    with pytest.raises(StopAsyncIteration):
        await anext(watcher)


async def test_a_watcher_that_was_away_still_gets_deleted(store):
    record, _ = await create(store)
    seen = await store.events("gate")
    record = await step(store, record, events=[STEP])
    first = await anext(seen)
    await seen.aclose()
    await step(store, record, events=[Event("reset", b"{}")])
    await store.delete("gate")
    late = [event async for event in await store.events("gate", after=first.id)]
    assert [event.type for event in late] == ["reset", "deleted"]
    with pytest.raises(UnknownStream):
        await store.events("gate")
    with pytest.raises(UnknownStream):
        await store.events("gate", after=late[-1].id)


async def test_events_of_a_successor_follow_those_of_the_deleted(store, redis_url):
    await create(store)
    before = await store.events("gate")
    await store.delete("gate")
    record, _ = await create(store)
    await step(store, record, events=[STEP])
    ended = [event async for event in before]
    assert [event.type for event in ended] == ["deleted"]
    after = await store.events("gate", after=ended[-1].id)
    assert (await anext(after)).type == "step"
    await after.aclose()
    async with connect(redis_url) as redis:
        assert await redis.ttl(store._keys.events("gate")) == -1


async def test_watchers_of_a_stream_that_expires_are_told(make_store):
    store = make_store(events_poll_s=0.1)
    await create(store, idle_ttl_s=0.15)
    events = [event async for event in await store.events("gate")]
    assert [event.type for event in events] == ["deleted"]


async def test_a_commit_tells_all_its_events_in_order_and_its_replay_besides(store, worker):
    record, _ = await create(store)
    watcher = await store.events("gate")
    events = [STEP, Event("alarm", b"{}")]
    new = await step(store, record, events=events, replay=("key", Replay("d", b"a")))
    assert [Event(*(await anext(watcher))[1:]) for _ in events] == events
    assert await worker.load("gate", "key") == (new, Replay("d", b"a"))
    with pytest.raises(Conflict):
        await step(worker, record, events=events)
    await step(store, new, events=[Event("step", b"next")])
    assert (await anext(watcher)).data == b"next"
    await watcher.aclose()


async def test_old_events_are_dropped(make_store, redis_url):
    store = make_store(events_kept=10)
    record, _ = await create(store)
    for _ in range(130):
        record = await step(store, record, events=[STEP])
    async with connect(redis_url) as redis:
        assert await redis.xlen(store._keys.events("gate")) < 120


@pytest.mark.parametrize("after", ["x", "1", "$", "1-", "99999999999999999999-0"])
async def test_what_is_no_event_id_is_refused(store, after):
    await create(store)
    with pytest.raises(ValueError, match="no event id"):
        await store.events("gate", after=after)


async def test_watchers_take_no_connection_from_others_and_leave_none_waiting(make_store, redis_url, eventually):
    store = make_store(max_connections=1)
    record, _ = await create(store)
    watchers = [await store.events("gate") for _ in range(5)]
    told = [asyncio.ensure_future(anext(watcher)) for watcher in watchers]
    async with connect(redis_url) as redis:

        async def blocked(count):
            return (await redis.info("clients"))["blocked_clients"] == count

        await eventually(lambda: blocked(5))
        await step(store, record, events=[STEP])
        assert {(await event).type for event in told} == {"step"}
        await eventually(lambda: blocked(0))
        told = [asyncio.ensure_future(anext(watcher)) for watcher in watchers]
        await eventually(lambda: blocked(5))
        for event in told:
            event.cancel()
        await asyncio.gather(*told, return_exceptions=True)
        await eventually(lambda: blocked(0))
