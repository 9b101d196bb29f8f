"""The store against a real server: streams, their list, idempotency, snapshots and the states at hand."""

import asyncio
import os

import pytest
from stores import STEP, Traffic, create, increment, snapshot, step

from normstream.service.storage.record_cache import RecordCache
from normstream.service.storage.records import (
    Conflict,
    Replay,
    StreamExists,
    StreamRecord,
    UnknownSnapshot,
    UnknownStream,
)
from normstream.service.storage.redis_link import connect

# Streams


async def test_create_load_and_peek_agree_on_every_field(make_store):
    store = make_store(clock=lambda: 1763712000.123456)
    record, made = await create(store, state=bytes(range(256)), step=7, idle_ttl_s=90.5)
    assert made
    assert (record.version, record.step, record.idle_ttl_s) == (1, 7, 90.5)
    assert record.created_at == record.updated_at == 1763712000.123456
    loaded, replay = await make_store().load("gate")
    assert loaded == record
    assert replay is None
    summary = await store.peek("gate")
    assert all(getattr(summary, name) == getattr(record, name) for name in summary.__dataclass_fields__)
    assert summary.state_bytes == record.state_bytes == 256


async def test_create_answers_the_stream_that_is_there(store, worker):
    first, _ = await create(store, state=b"mine")
    await step(store, first)
    found, made = await create(worker, state=b"other", model="another")
    assert not made
    assert (found.model, found.state, found.version) == ("lite0", b"adapted", 2)


async def test_of_many_that_create_one_does(store, worker):
    made = await asyncio.gather(*(create(maker, state=bytes([n])) for n, maker in enumerate([store, worker] * 10)))
    assert sum(new for _, new in made) == 1
    assert len({record for record, _ in made}) == 1


async def test_commit_shows_everywhere(store, worker):
    record, _ = await create(store)
    await worker.load("gate")
    new = await step(store, record)
    assert (new.version, new.step, new.state) == (2, 1, b"adapted")
    assert new.updated_at >= new.created_at == record.created_at
    assert (await worker.load("gate"))[0] == new
    assert (await worker.peek("gate")).state_bytes == len(b"adapted")


async def test_changes_that_leave_the_state_are_told_from_others(make_store):
    now = [0.0]
    store = make_store(clock=lambda: now[0])
    record, _ = await create(store)
    for state in (b"adapted", None, None):
        now[0] += 1
        record = await store.commit(record, state=state, step=1, scores=b"counted")
    assert (record.version, record.updated_at, record.state) == (4, 3, b"adapted")
    assert (record.state_version, record.state_at) == (2, 1)
    assert (await make_store().load("gate"))[0] == record
    summary = await store.peek("gate")
    assert (summary.state_version, summary.state_at) == (2, 1)


async def test_a_late_commit_conflicts_and_changes_nothing(store, worker):
    record, _ = await create(store)
    await worker.load("gate")
    new = await step(worker, record, b"theirs")
    with pytest.raises(Conflict, match="'gate'"):
        await step(store, record, b"mine", events=[STEP], replay=("key", Replay("d", b"a")))
    assert await store.load("gate", "key") == (new, None)
    assert (await step(store, new, b"both")).version == 3


async def test_workers_that_race_lose_no_update(make_store):
    stores = [make_store() for _ in range(3)]
    await create(stores[0], state=b"0")

    async def work(store):
        for _ in range(15):
            await increment(store)

    await asyncio.gather(*map(work, stores))
    record, _ = await make_store().load("gate")
    assert (record.state, record.step, record.version) == (b"45", 45, 46)


async def test_unknown_streams(store):
    for call in (store.load("no"), store.peek("no"), store.delete("no"), store.fork("no", "new"), store.events("no")):
        with pytest.raises(UnknownStream, match="'no'"):
            await call


async def test_delete_is_seen_by_a_worker_with_the_state_at_hand(store, worker):
    record, _ = await create(store)
    await worker.load("gate")
    await store.delete("gate")
    with pytest.raises(UnknownStream):
        await step(worker, record)
    with pytest.raises(UnknownStream):
        await worker.load("gate")


async def test_a_stream_made_anew_is_another(make_store):
    store, worker = make_store(clock=lambda: 1.0), make_store(clock=lambda: 1.0)
    old, _ = await create(store, state=b"old")
    await worker.load("gate")
    await store.delete("gate")
    new, made = await create(store, state=b"new")
    assert made
    assert new.generation != old.generation
    assert new.version == old.version
    assert (await worker.load("gate"))[0].state == b"new"
    with pytest.raises(Conflict):
        await step(worker, old)


async def test_fork_copies_the_state_and_lives_its_own_life(store):
    record, _ = await create(store, idle_ttl_s=60)
    record = await step(store, record)
    fork = await store.fork("gate", "gate-2")
    assert (fork.state, fork.step, fork.recipe, fork.idle_ttl_s) == (b"adapted", 1, record.recipe, 60)
    assert fork.version == 1
    assert fork.generation != record.generation
    await step(store, fork, b"elsewhere")
    assert (await store.load("gate"))[0] == record
    with pytest.raises(StreamExists, match="'gate-2'"):
        await store.fork("gate", "gate-2")


# The list of streams


async def test_pages_follow_the_ids(store):
    for stream_id in ["b", "a.1", "a-1", "C", "a_1"]:
        await create(store, stream_id)
    ids, after = [], None
    while True:
        page, after = await store.streams(2, after)
        ids += [stream.id for stream in page]
        if after is None:
            break
        assert len(page) == 2
    assert ids == sorted(["b", "a.1", "a-1", "C", "a_1"])
    assert await store.streams(5) == (await store.streams(9))
    assert await store.streams(2, after="b") == ([], None)


async def test_streams_that_expired_leave_the_list_and_do_not_shorten_pages(store, redis_url):
    for number in range(6):
        await create(store, f"s{number}", idle_ttl_s=0.05 if number < 4 else None)
    await store.delete("s4")
    await create(store, "s4")
    await asyncio.sleep(0.1)
    page, after = await store.streams(1)
    assert [stream.id for stream in page] == ["s4"]
    assert after == "s4"
    async with connect(redis_url) as redis:
        assert await redis.zrange(store._keys.index, 0, -1) == [b"s4", b"s5"]


async def test_a_stream_made_anew_while_it_is_taken_out_stays_in_the_list(store):
    await create(store)
    await store._index.drop_gone(["gate", "never"])
    assert [stream.id for stream in (await store.streams())[0]] == ["gate"]


async def test_use_keeps_a_stream_alive_and_idleness_ends_it(store):
    record, _ = await create(store, idle_ttl_s=0.3)
    for _ in range(3):
        await asyncio.sleep(0.15)
        record, _ = await store.load("gate")
    await asyncio.sleep(0.15)
    record = await step(store, record, events=[STEP])
    await asyncio.sleep(0.15)
    assert await store.peek("gate")
    await asyncio.sleep(0.2)
    with pytest.raises(UnknownStream):
        await store.load("gate")
    assert (await create(store))[1]


# Idempotency


async def test_an_answer_is_found_under_its_key_until_it_expires(make_store):
    store = make_store(idempotency_ttl_s=0.2)
    record, _ = await create(store)
    new = await step(store, record, replay=("key", Replay("digest", b"answer")))
    await store.remember(new, "other {}", Replay("d2", b"\x00"))
    assert await store.load("gate", "key") == (new, Replay("digest", b"answer"))
    assert await make_store().load("gate", "other {}") == (new, Replay("d2", b"\x00"))
    assert await store.load("gate", "unused") == (new, None)
    assert await store.load("gate") == (new, None)
    await asyncio.sleep(0.25)
    assert await store.load("gate", "key") == (new, None)


async def test_answers_do_not_outlive_their_stream(store):
    record, _ = await create(store)
    record = await step(store, record, replay=("key", Replay("digest", b"answer")))
    await store.delete("gate")
    new, _ = await create(store)
    assert await store.load("gate", "key") == (new, None)
    new = await step(store, new, replay=("key", Replay("digest", b"new")))
    await store.remember(record, "key", Replay("digest", b"late"))
    assert await store.load("gate", "key") == (new, Replay("digest", b"new"))


async def test_of_two_with_the_same_key_one_adapts_and_both_know_the_answer(store, worker):
    record, _ = await create(store)
    await step(store, record, replay=("key", Replay("digest", b"first")))
    with pytest.raises(Conflict):
        await step(worker, record, replay=("key", Replay("digest", b"second")))
    assert (await worker.load("gate", "key"))[1] == Replay("digest", b"first")


# Snapshots


async def test_snapshots_come_newest_first_without_their_states(store, worker):
    for number in range(3):
        await store.put_snapshot(snapshot(f"snap-{number}", created_at=10.0 + number, state=b"x" * number))
    await store.put_snapshot(snapshot("snap-other", stream="other"))
    listed = await worker.snapshots("gate")
    assert [(found.id, found.state_bytes) for found in listed] == [("snap-2", 2), ("snap-1", 1), ("snap-0", 0)]
    assert await worker.snapshot("snap-1") == snapshot("snap-1", created_at=11.0, state=b"x")


async def test_snapshots_outlive_their_stream(store):
    await create(store)
    await store.put_snapshot(snapshot())
    await store.delete("gate")
    assert (await store.snapshot("snap-1")).state == b"kept"
    assert len(await store.snapshots("gate")) == 1


async def test_an_upload_belongs_to_no_stream_and_replaces_nothing(store):
    assert await store.put_snapshot(snapshot())
    assert not await store.put_snapshot(snapshot(stream=None, state=b"uploaded"))
    assert (await store.snapshot("snap-1")).state == b"kept"
    assert await store.put_snapshot(snapshot("snap-2", stream=None, state=b"uploaded"))
    assert [each.id for each in await store.snapshots("gate")] == ["snap-1"]


async def test_of_many_that_put_one_snapshot_at_once_one_does(store, worker):
    states = [bytes([number]) for number in range(20)]
    puts = [(store, worker)[number % 2].put_snapshot(snapshot(state=state)) for number, state in enumerate(states)]
    done = await asyncio.gather(*puts)
    assert sum(done) == 1
    assert (await store.snapshot("snap-1")).state == states[done.index(True)]


async def test_deleted_snapshots_are_gone(store):
    await store.put_snapshot(snapshot())
    await store.delete_snapshot("snap-1")
    assert await store.snapshots("gate") == []
    with pytest.raises(UnknownSnapshot, match="'snap-1'"):
        await store.snapshot("snap-1")
    with pytest.raises(UnknownSnapshot):
        await store.delete_snapshot("snap-1")


# The states at hand


async def test_a_state_travels_only_when_it_changed(store, worker, redis_url):
    record, _ = await create(store, state=os.urandom(500_000))
    async with connect(redis_url) as redis:
        traffic = Traffic(redis)
        await traffic.since()
        assert (await store.load("gate"))[0] == record
        assert await traffic.since() < 20_000
        await worker.load("gate")
        assert await traffic.since() > 500_000
        changed = await step(worker, record, state=os.urandom(500_000))
        await worker.load("gate")
        assert await traffic.since() < 20_000
        assert (await store.load("gate"))[0] == changed
        assert await traffic.since() > 500_000
        await store.peek("gate")
        await store.streams()
        assert await traffic.since() < 20_000


async def test_a_version_that_came_back_with_another_state_is_read_again(store, worker, redis_url):
    record, _ = await create(store)
    lost = await step(store, record, b"lost")
    before = {"version": 1, "updated_at": record.updated_at, "state": b"source", "done": ""}
    async with connect(redis_url) as redis:  # a fail-over to a replica that had not heard of the last commit
        await redis.hset(store._keys.stream("gate"), mapping=before)
    second = await step(worker, record, b"second")
    assert second.version == lost.version
    with pytest.raises(Conflict):  # even of what would leave the state as it is: it is not the one that was loaded
        await store.commit(lost, state=None, step=lost.step)
    assert (await store.load("gate"))[0].state == b"second"


def test_the_cache_keeps_the_last_used_within_its_bytes():
    def record(stream_id, size):
        known = dict.fromkeys(("model", "fingerprint", "recipe", "generation"), "")
        times = {"created_at": 0.0, "updated_at": 0.0}
        blobs = {"state": b"x" * (size - 5), "scores": b"x" * 5, "learnt_bytes": 1000}
        return StreamRecord(id=stream_id, version=1, step=0, **blobs, **known, **times)

    cache = RecordCache(100)
    for stream_id in "abc":
        cache.put(record(stream_id, 40))
    assert cache.get("a") is None
    assert cache.get("b")
    cache.put(record("d", 40))
    assert cache.get("c") is None
    cache.put(record("b", 10))
    cache.put(record("e", 50))
    assert all(map(cache.get, "bde"))
    cache.drop("b")
    cache.drop("b")
    cache.put(record("huge", 101))
    assert not any(map(cache.get, ["b", "d", "e", "huge"]))
