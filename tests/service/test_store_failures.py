"""The store when Redis fails: what it says then, and that nothing is lost, done twice or written by halves."""

import asyncio
import os
import random
import signal
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress

import pytest
from redis import ConnectionError as RedisConnectionError
from stores import STEP, Line, create, increment, snapshot, step

from normstream.service.storage.records import Event, Replay, StoreUnavailable
from normstream.service.storage.redis_link import TIMEOUT_S, connect


@pytest.fixture
async def line(redis_url, data) -> AsyncIterator[Line]:
    async with Line(redis_url, data.with_name("line.sock")) as line:
        yield line


async def test_a_commit_that_landed_but_lost_its_reply_is_a_success(make_store, worker, line):
    store = make_store(line.url)
    record = await step(store, (await create(store))[0])
    line.arm()
    new = await step(store, record, b"once", events=[STEP])
    assert line.cut.is_set()
    assert (new.version, new.state) == (3, b"once")
    assert (await worker.load("gate"))[0] == new


async def test_even_if_another_worker_committed_before_it_was_sent_again(make_store, worker, line):
    store = make_store(line.url)
    record = await step(store, (await create(store, state=b"0"))[0], b"1")
    line.arm()
    committing = asyncio.ensure_future(step(store, record, b"2"))
    await line.cut.wait()
    assert (await increment(worker)).state == b"3"
    assert (await committing).version == 3
    assert (await store.load("gate"))[0].state == b"3"


async def test_a_create_that_lost_its_reply_made_the_stream(make_store, line):
    store = make_store(line.url)
    await create(store, "warm-up")
    line.arm()
    assert (await create(store))[1]
    assert line.cut.is_set()


async def test_who_is_told_to_end_ends_whatever_redis_is_about(make_store):
    await create(make_store())

    async def watch(store):
        async with aclosing(await store.events("gate")) as events:
            while True:
                await store.peek("gate")
                await anext(events)

    for turns in range(50):  # of the loop: on new connections, between commands, while it waits for an event
        watching = asyncio.ensure_future(watch(make_store()))
        for _ in range(turns):
            await asyncio.sleep(0)
        watching.cancel()
        ended, _ = await asyncio.wait({watching}, timeout=10)
        assert ended, f"told after {turns} turns it goes on"
        assert watching.cancelled()


async def test_who_is_told_to_end_while_redis_fails_ends(make_store):
    async def swallowing():
        async with make_store()._link.reach():
            with suppress(asyncio.CancelledError):  # as asyncio.wait_for may, before Python 3.12
                await asyncio.sleep(60)
            raise RedisConnectionError("gone meanwhile")

    task = asyncio.ensure_future(swallowing())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()


async def test_no_server_is_said_within_a_second(make_store, tmp_path):
    store = make_store(f"unix://{tmp_path}/none.sock")
    began = time.monotonic()
    with pytest.raises(StoreUnavailable, match="No such file"):
        await create(store)
    with pytest.raises(StoreUnavailable):
        await store.check()
    assert time.monotonic() - began < 2


async def test_a_server_that_hangs_is_given_up_within_a_second_and_works_again(make_store, own_redis, eventually):
    store = make_store(own_redis.url, timeout_s=TIMEOUT_S)
    record, _ = await create(store)
    async with connect(own_redis.url) as redis:
        server = (await redis.info("server"))["process_id"]
    os.kill(server, signal.SIGSTOP)
    try:
        began = time.monotonic()
        calls = [store.load("gate"), step(store, record), store.streams(), store.snapshot("s"), store.events("gate")]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert time.monotonic() - began < 1
        assert {type(outcome) for outcome in outcomes} == {StoreUnavailable}
        assert {str(outcome) for outcome in outcomes} == {"Redis did not answer within 0.8 s."}
    finally:
        os.kill(server, signal.SIGCONT)
    loaded, _ = await eventually(lambda: store.load("gate"))
    await step(store, loaded)


async def test_out_of_memory_is_said_and_writes_nothing_by_halves(make_store, own_redis):
    store = make_store(own_redis.url)
    record, _ = await create(store)
    watcher = await store.events("gate")
    async with connect(own_redis.url) as redis:
        await redis.config_set("maxmemory", 1)
        for write in (
            step(store, record, events=[STEP], replay=("key", Replay("d", b"a"))),
            create(store, "new"),
            store.put_snapshot(snapshot()),
            store.remember(record, "key", Replay("d", b"a")),
        ):
            with pytest.raises(StoreUnavailable, match="no memory left"):
                await write
        assert await store.load("gate", "key") == (record, None)
        assert [stream.id for stream in (await store.streams())[0]] == ["gate"]
        await redis.config_set("maxmemory", 0)
    await step(store, record, events=[Event("step", b"after")])
    assert (await anext(watcher)).data == b"after"
    await watcher.aclose()


async def test_streams_can_be_deleted_when_memory_is_out(make_store, own_redis):
    store = make_store(own_redis.url)
    await create(store)
    async with connect(own_redis.url) as redis:
        await redis.config_set("maxmemory", 1)
        await store.delete("gate")
    assert await store.streams() == ([], None)


async def test_a_read_only_replica_is_said(make_store, own_redis):
    store = make_store(own_redis.url)
    record, _ = await create(store)
    async with connect(own_redis.url) as redis:
        await redis.replicaof("127.0.0.1", 1)
        with pytest.raises(StoreUnavailable, match="read-only replica"):
            await step(store, record)
        await redis.replicaof("NO", "ONE")
    await step(store, record)


async def test_check_warns_of_what_could_drop_streams(make_store, own_redis):
    assert await make_store(own_redis.url).check() == []
    async with connect(own_redis.url) as redis:
        await redis.config_set("maxmemory-policy", "volatile-lru")
        assert "volatile-lru" in (await make_store(own_redis.url).check())[0]
        await redis.execute_command("ACL SETUSER guest on >word ~* &* +@all -config")
    guest = make_store(own_redis.url.replace("unix://", "unix://guest:word@"))
    assert "make sure that it is 'noeviction'" in (await guest.check())[0]


async def test_the_record_of_another_stream_is_refused(store, worker, redis_url):
    await create(store)
    await store.put_snapshot(snapshot())
    async with connect(redis_url) as redis:
        await redis.hset(store._keys.stream("gate"), "id", "other")
        await redis.hset(store._keys.snapshot("snap-1"), "id", "other")
    with pytest.raises(StoreUnavailable, match="with that of 'other'"):
        await worker.load("gate")
    with pytest.raises(StoreUnavailable, match="with that of 'other'"):
        await worker.snapshot("snap-1")


async def test_a_cancelled_call_never_leaves_its_reply_to_another(make_store):
    dice = random.Random(5)
    store = make_store(max_connections=2, cache_bytes=0)
    states = {f"s{n}": bytes([n]) * 200_000 for n in range(8)}
    for stream_id, state in states.items():
        await create(store, stream_id, state=state)

    async def read(stream_id):
        task = asyncio.ensure_future(store.load(stream_id))
        await asyncio.sleep(dice.uniform(0, 0.004))
        if dice.random() < 0.5:
            task.cancel()
        with suppress(asyncio.CancelledError):
            record, _ = await task
            assert (record.id, record.state) == (stream_id, states[stream_id])
            return True

    done = []
    for _ in range(60):
        done += await asyncio.gather(*map(read, states))
    assert 60 < done.count(True) < 420
    in_use = [len(link._redis.connection_pool._in_use_connections) for link in (store._link, store._readers)]
    assert in_use == [0, 0]
