"""What a stream has learnt, and its scores, in the store: they change with the state, and travel when they must."""

import asyncio
import os

import pytest
from stores import STEP, Line, Traffic, create, snapshot, step

from normstream.service.storage import blob_shelf
from normstream.service.storage.blob_shelf import Blob
from normstream.service.storage.embedded_redis import EmbeddedRedis
from normstream.service.storage.records import (
    Conflict,
    Incomplete,
    StoreUnavailable,
    UnknownSnapshot,
    UnknownStream,
)
from normstream.service.storage.redis_link import connect

NEW_FIELDS = ("learnt_tag", "learnt_bytes", "scores")
FOR_EVER, TAG_BYTES = -1, 16


@pytest.fixture
def tiny_pieces(monkeypatch):
    """Pieces of four bytes."""
    monkeypatch.setattr(blob_shelf, "PIECE_BYTES", 4)


@pytest.fixture
async def redis(redis_url):
    async with connect(redis_url) as client:
        yield client


def blob_of(store, record):
    return Blob(record.learnt_tag).key(store._keys.stream(record.id))


async def blobs(redis, store, stream_id="gate"):
    """The keys of all that was learnt and is still there."""
    return {key.decode() async for key in redis.scan_iter(store._keys.stream(stream_id) + ":*", count=10_000)}


async def state_of(redis, store, snapshot_id="snap-1"):
    """The key of a snapshot's state."""
    key = store._keys.snapshot(snapshot_id)
    return Blob((await redis.hget(key, "state_tag")).decode()).key(key)


async def test_a_stream_begins_with_what_it_is_given(store, worker):
    record, _ = await create(store, learnt=b"network")
    assert (record.learnt_bytes, record.scores, record.state_bytes) == (7, b"", len(b"source" + b"network"))
    assert record.learnt_tag
    assert (await worker.load("gate"))[0] == record
    assert await worker.learnt(record) == b"network"
    assert (await worker.peek("gate")).state_bytes == record.state_bytes
    plain, _ = await create(store, "plain")
    assert (plain.learnt_bytes, plain.learnt_tag, plain.scores) == (0, "", b"")
    assert await worker.learnt(plain) == b""


async def test_a_commit_changes_what_it_is_given_and_leaves_the_rest(store, worker):
    first, _ = await create(store, learnt=b"network")
    second = await step(store, first, learnt=b"more", scores=b"1/2")
    assert (second.learnt_bytes, second.scores, second.state_bytes) == (4, b"1/2", len(b"adapted" + b"more"))
    assert second.learnt_tag not in ("", first.learnt_tag)
    assert (await worker.load("gate"))[0] == second
    third = await step(worker, second, b"x")
    assert (third.learnt_tag, third.scores) == (second.learnt_tag, b"1/2")
    assert (await store.load("gate"))[0] == third
    assert await store.learnt(third) == b"more"
    fourth = await step(store, third, learnt=b"", scores=b"")
    assert (fourth.learnt_bytes, fourth.learnt_tag, fourth.scores) == (0, "", b"")
    assert (await worker.load("gate"))[0] == fourth
    assert await worker.learnt(fourth) == b""


async def test_the_same_learnt_again_has_another_tag(store):
    record, _ = await create(store, learnt=b"network")
    tags = {record.learnt_tag}
    for _ in range(3):
        record = await step(store, record, learnt=b"network")
        tags.add(record.learnt_tag)
    assert len(tags) == 4


async def test_a_late_lesson_conflicts_and_changes_nothing(store, worker):
    record, _ = await create(store, learnt=b"network")
    new = await step(worker, record, learnt=b"theirs", scores=b"theirs")
    with pytest.raises(Conflict):
        await step(store, record, learnt=b"mine", scores=b"mine")
    assert (await store.load("gate"))[0] == new
    assert await store.learnt(new) == b"theirs"


async def test_a_fork_has_learnt_the_same_and_no_scores(store):
    record, _ = await create(store, learnt=b"network")
    record = await step(store, record, learnt=b"more", scores=b"1/2")
    fork = await store.fork("gate", "gate-2")
    assert (await store.learnt(fork), fork.scores) == (b"more", b"")
    await step(store, fork, learnt=b"elsewhere")
    assert (await store.load("gate"))[0] == record
    assert await store.learnt(record) == b"more"


async def test_what_was_learnt_travels_only_when_asked_for(store, worker, redis):
    record, _ = await create(store, learnt=os.urandom(2_000_000))
    traffic = Traffic(redis)
    await traffic.since()
    for _ in range(3):
        await worker.load("gate")
        record = await step(store, record, os.urandom(100), scores=b"1/2")
        assert (await worker.load("gate"))[0] == record
    assert await traffic.since() < 20_000
    await worker.learnt(record)
    assert await traffic.since() > 2_000_000


@pytest.mark.parametrize("size", [1, 3, 4, 5, 8, 33])
@pytest.mark.usefixtures("tiny_pieces")
async def test_blobs_of_all_sizes_come_back(store, worker, redis, size):
    learnt, state = os.urandom(size), os.urandom(size)
    record = await step(store, (await create(store, learnt=learnt))[0], learnt=learnt)
    assert await worker.learnt(record) == learnt
    assert all(len(piece) <= TAG_BYTES + 4 for piece in await redis.hvals(blob_of(store, record)))
    await store.put_snapshot(snapshot(state=state))
    assert await worker.snapshot("snap-1") == snapshot(state=state)


async def test_no_exchange_is_longer_than_a_piece(store, redis):
    record, _ = await create(store, learnt=os.urandom(2_500_000))
    sizes = [len(piece) for piece in await redis.hvals(blob_of(store, record))]
    assert max(sizes) == TAG_BYTES + blob_shelf.PIECE_BYTES
    assert len(sizes) == 3


async def test_only_what_a_stream_has_learnt_last_stays(store, worker, redis):
    record, _ = await create(store, learnt=b"network")
    for lesson in range(3):
        before, record = blob_of(store, record), await step(store, record, learnt=b"%d" % lesson)
        assert await redis.pttl(blob_of(store, record)) == FOR_EVER
        assert 0 < await redis.pttl(before) <= 5_000
        await redis.delete(before)
    late = record
    record = await step(store, record)
    with pytest.raises(Conflict):
        await step(worker, late, learnt=b"late")
    assert await blobs(redis, store) == {blob_of(store, record)}
    before, record = blob_of(store, record), await step(store, record, learnt=b"")
    assert 0 < await redis.pttl(before) <= 5_000


async def test_who_reads_while_another_teaches_can_finish(store, worker):
    record, _ = await create(store, learnt=b"network")
    await step(worker, record, learnt=b"more")
    assert await store.learnt(record) == b"network"


async def test_what_is_staged_and_not_committed_is_gone(store, redis):
    record, _ = await create(store, learnt=b"network")
    async with store.staged("gate", b"more") as blob:
        key = blob.key(store._keys.stream("gate"))
        assert 0 < await redis.pttl(key) <= 60_000
    with pytest.raises(ZeroDivisionError):
        async with store.staged("gate", b"more"):
            raise ZeroDivisionError
    assert await blobs(redis, store) == {blob_of(store, record)}


async def test_what_is_staged_once_can_be_committed_after_a_conflict(store, worker, redis):
    record, _ = await create(store, learnt=b"network")
    async with store.staged("gate", b"more") as blob:
        new = await step(worker, record)
        with pytest.raises(Conflict):
            await store.commit(record, state=b"mine", step=1, learnt=blob)
        new = await store.commit(new, state=b"mine", step=2, learnt=blob)
    assert await worker.learnt(new) == b"more"
    assert await redis.pttl(blob_of(store, new)) == FOR_EVER


async def test_what_is_committed_twice_stays(store, worker, redis):
    record, _ = await create(store, learnt=b"network")
    async with store.staged("gate", b"more") as blob:
        new = await store.commit(record, state=b"mine", step=1, learnt=blob)
        new = await store.commit(await step(worker, new), state=b"mine", step=3, learnt=blob)
    assert await redis.pttl(blob_of(store, new)) == FOR_EVER
    assert await worker.learnt(new) == b"more"


async def test_a_stream_deleted_before_the_commit_stays_deleted(store, worker, redis):
    record, _ = await create(store, learnt=b"network")
    async with store.staged("gate", b"more") as blob:
        await worker.delete("gate")
        with pytest.raises(UnknownStream):
            await store.commit(record, state=b"mine", step=1, learnt=blob)
    assert await blobs(redis, store) == set()


async def test_a_failure_to_tidy_up_hides_nothing(store, monkeypatch):
    record, _ = await create(store, learnt=b"network")

    async def refuses(*_):
        raise StoreUnavailable("Redis failed.")

    monkeypatch.setattr(store._blobs, "_unstage", refuses)
    await step(store, record)
    with pytest.raises(Conflict):
        await step(store, record, learnt=b"more")


async def test_a_stream_that_exists_leaves_nothing_of_the_one_to_be_made(store, worker, redis, monkeypatch):
    record, _ = await create(store, learnt=b"network")
    assert await create(store, learnt=b"other") == (record, False)

    async def not_yet(stream_id):
        raise UnknownStream(stream_id)

    monkeypatch.setattr(worker, "load", not_yet)  # so that the other is first by a moment
    assert await create(worker, learnt=b"other") == (record, False)
    assert await blobs(redis, store) == {blob_of(store, record)}
    assert await redis.pttl(blob_of(store, record)) == FOR_EVER


async def test_a_deleted_stream_takes_along_what_it_has_learnt(store, redis):
    await create(store, learnt=b"network")
    await store.delete("gate")
    assert await blobs(redis, store) == set()


async def test_what_was_learnt_lives_as_long_as_its_stream(store, worker, redis):
    record, _ = await create(store, learnt=b"network", idle_ttl_s=60)

    async def lives():
        return [await redis.pttl(key) for key in (store._keys.stream("gate"), blob_of(store, record))]

    async def shortened():
        for key in (store._keys.stream("gate"), blob_of(store, record)):
            await redis.pexpire(key, 1000)

    assert all(50_000 < left <= 60_000 for left in await lives())
    await shortened()
    await worker.load("gate")
    assert all(50_000 < left <= 60_000 for left in await lives())
    await shortened()
    record = await step(store, record)
    assert all(50_000 < left <= 60_000 for left in await lives())
    record = await step(store, record, learnt=b"more")
    assert all(50_000 < left <= 60_000 for left in await lives())


async def test_a_piece_that_comes_late_does_not_end_the_life_of_the_blob(store, redis):
    record, _ = await create(store, learnt=b"network")
    await store._blobs._put(store._keys.stream("gate"), Blob(record.learnt_tag, 7), b"network")
    assert await redis.pttl(blob_of(store, record)) == FOR_EVER
    await store.put_snapshot(snapshot())
    key = await state_of(redis, store)
    await store._shelf._blobs._put(store._keys.snapshot("snap-1"), Blob(key[-TAG_BYTES:], 4), b"kept")
    assert await redis.pttl(key) == FOR_EVER


async def test_a_reader_that_comes_too_late_is_told(store, worker, redis):
    record, _ = await create(store, learnt=b"network")
    new = await step(worker, record, learnt=b"more")
    await redis.delete(blob_of(store, record))
    with pytest.raises(Conflict):
        await store.learnt(record)
    await worker.delete("gate")
    with pytest.raises(Conflict):
        await store.learnt(new)


@pytest.mark.usefixtures("tiny_pieces")
async def test_of_what_redis_lost_no_part_is_given_out(store, redis):
    record, _ = await create(store, learnt=b"network")
    await redis.hdel(blob_of(store, record), "1")
    with pytest.raises(Incomplete, match="stream 'gate' has learnt"):
        await store.learnt(record)
    with pytest.raises(Incomplete):
        await store.fork("gate", "gate-2")
    await store.put_snapshot(snapshot(state=b"network"))
    await redis.delete(await state_of(redis, store))
    with pytest.raises(Incomplete, match="snapshot 'snap-1'"):
        await store.snapshot("snap-1")
    await redis.hdel(store._keys.snapshot("snap-1"), "state_tag")
    with pytest.raises(Incomplete, match="snapshot 'snap-1'"):
        await store.snapshot("snap-1")
    assert not await store.put_snapshot(snapshot())
    await store.delete_snapshot("snap-1")
    assert await store.put_snapshot(snapshot())


async def test_another_s_piece_is_refused(store, redis):
    record, _ = await create(store, learnt=b"network")
    other, _ = await create(store, "other", learnt=b"netwurk")
    await redis.rename(blob_of(store, other), blob_of(store, record))
    with pytest.raises(StoreUnavailable, match="refused"):
        await store.learnt(record)


async def test_a_snapshot_deleted_while_it_is_read_is_unknown(store, worker, monkeypatch):
    await store.put_snapshot(snapshot())
    read = store._shelf._blobs.read

    async def too_late(*what):
        await worker.delete_snapshot("snap-1")
        return await read(*what)

    monkeypatch.setattr(store._shelf._blobs, "read", too_late)
    with pytest.raises(UnknownSnapshot):
        await store.snapshot("snap-1")


async def test_without_all_its_pieces_nothing_is_made(store, redis, monkeypatch):
    record, _ = await create(store, learnt=b"network")
    for shelf in (store._blobs, store._shelf._blobs):

        async def lost(key, blob, data, put=shelf._put):
            await put(key, blob, data)
            await redis.delete(blob.key(key))

        monkeypatch.setattr(shelf, "_put", lost)
    with pytest.raises(StoreUnavailable, match="a part of what stream 'gate'"):
        await step(store, record, learnt=b"more", events=[STEP])
    with pytest.raises(StoreUnavailable, match="a part of what stream 'other'"):
        await create(store, "other", learnt=b"network")
    with pytest.raises(StoreUnavailable, match="a part of snapshot 'snap-1'"):
        await store.put_snapshot(snapshot())
    assert (await store.load("gate"))[0] == record
    assert await store.learnt(record) == b"network"
    assert [each.id for each in (await store.streams())[0]] == ["gate"]
    with pytest.raises(UnknownSnapshot):
        await store.snapshot("snap-1")


async def test_snapshots_leave_nothing_behind(store, redis):
    await store.put_snapshot(snapshot())
    assert not await store.put_snapshot(snapshot(state=b"second"))
    await store.delete_snapshot("snap-1")
    assert [key async for key in redis.scan_iter(store._keys.snapshot("snap-1") + "*", count=10_000)] == []


async def test_streams_of_before_are_read_and_may_learn(store, make_store, redis):
    record, _ = await create(store)
    await redis.hdel(store._keys.stream("gate"), *NEW_FIELDS)
    assert (await make_store().load("gate"))[0] == record
    assert await make_store().learnt(record) == b""
    assert await create(make_store()) == (record, False)
    record = await step(store, record)
    record = await step(make_store(), record, learnt=b"network", scores=b"1/2")
    assert (await store.load("gate"))[0] == record
    assert await store.learnt(record) == b"network"


async def test_nobody_takes_what_a_predecessor_learnt_for_a_stream_of_before(store, worker, redis):
    await create(store, learnt=b"network")
    await worker.load("gate")
    await store.delete("gate")
    new, _ = await create(store)
    await redis.hdel(store._keys.stream("gate"), *NEW_FIELDS)
    assert (await worker.load("gate"))[0] == new
    assert await worker.learnt(new) == b""


async def test_a_version_that_came_back_keeps_what_it_learnt_itself(store, worker, redis):
    record, _ = await create(store, learnt=b"network")
    lost = await step(store, record, learnt=b"lost")
    # A fail-over to a replica that had not heard of the last commit.
    before = {"version": 1, "updated_at": record.updated_at, "learnt_tag": record.learnt_tag, "learnt_bytes": 7}
    before["done"] = ""
    await redis.hset(store._keys.stream("gate"), mapping=before)
    await redis.delete(blob_of(store, lost))
    second = await step(worker, record, learnt=b"second")
    assert second.version == lost.version
    with pytest.raises(Conflict):
        await step(store, lost)
    with pytest.raises(Conflict):
        await store.learnt(lost)
    assert await store.learnt((await store.load("gate"))[0]) == b"second"


async def test_a_stream_made_once_may_have_learnt_before_its_maker_hears_of_it(make_store, worker, redis_url, data):
    async with Line(redis_url, data.with_name("line.sock")) as line:
        store = make_store(line.url)
        await create(store, "warm-up", learnt=b"0")
        line.arm(2)  # after looking for the stream, and after the piece
        making = asyncio.ensure_future(create(store, learnt=b"network"))
        await line.cut.wait()
        taught = await step(worker, (await worker.load("gate"))[0], learnt=b"more")
        assert await making == (taught, True)
        assert await store.learnt(taught) == b"more"


@pytest.mark.parametrize("delivered", [0, 1, 2, 3], ids=["first piece", "second piece", "last piece", "commit"])
@pytest.mark.usefixtures("tiny_pieces")
async def test_a_lesson_that_landed_but_lost_a_reply_is_a_success(make_store, worker, redis_url, data, delivered):
    async with Line(redis_url, data.with_name("line.sock")) as line:
        store = make_store(line.url)
        record = await step(store, (await create(store, learnt=b"network"))[0])
        line.arm(delivered)
        new = await step(store, record, learnt=b"twelve bytes", scores=b"1/2")
        assert line.cut.is_set()
        assert (await worker.load("gate"))[0] == new
        assert (new.version, await worker.learnt(new)) == (3, b"twelve bytes")


@pytest.mark.parametrize("delivered", [0, 1, 2], ids=["look", "piece", "record"])
async def test_what_was_made_but_lost_a_reply_is_made_once(make_store, worker, redis_url, data, delivered):
    async with Line(redis_url, data.with_name("line.sock")) as line:
        store = make_store(line.url)
        record, _ = await create(store, "warm-up", learnt=b"0")
        await store.put_snapshot(snapshot("snap-0"))
        line.arm(delivered)
        record, made = await create(store, learnt=b"network")
        assert made
        assert line.cut.is_set()
        assert await worker.learnt(record) == b"network"
        line.arm(delivered % 2)
        assert await store.put_snapshot(snapshot())
        assert line.cut.is_set()
        assert await worker.snapshot("snap-1") == snapshot()


async def test_out_of_memory_a_lesson_writes_nothing_by_halves(make_store, own_redis):
    store = make_store(own_redis.url)
    record, _ = await create(store, learnt=b"network")
    async with connect(own_redis.url) as redis:
        await redis.config_set("maxmemory", 1)
        for learnt in (b"more", b""):  # refused with its first piece, and with the commit
            with pytest.raises(StoreUnavailable, match="no memory left"):
                await step(store, record, learnt=learnt, scores=b"1/2", events=[STEP], labelled=[("a-0", "cat")])
        with pytest.raises(StoreUnavailable, match="no memory left"):
            await store.put_snapshot(snapshot())
        assert (await make_store(own_redis.url).load("gate"))[0] == record
        assert await store.learnt(record) == b"network"
        assert await store.unlabelled("gate", ["a-0"]) == {}
        await redis.config_set("maxmemory", 0)
    await step(store, record, learnt=b"more")


async def test_pieces_refused_for_want_of_memory_leave_nothing_behind(make_store, own_redis):
    store = make_store(own_redis.url)
    record, _ = await create(store, learnt=b"network")
    async with connect(own_redis.url) as redis:
        used = (await redis.info("memory"))["used_memory"]
        await redis.config_set("maxmemory", used + 6_000_000)
        with pytest.raises(StoreUnavailable, match="no memory left"):
            await step(store, record, learnt=os.urandom(20_000_000))
        assert await blobs(redis, store) == {blob_of(store, record)}


async def test_what_was_committed_outlives_a_restart_after_its_time_as_staged(make_store, data, eventually):
    async with EmbeddedRedis(data) as own, connect(own.url) as redis:
        store = make_store(own.url)
        record, _ = await create(store, learnt=b"network")
        async with store.staged("gate", b"more") as blob:
            await redis.pexpire(blob.key(store._keys.stream("gate")), 1500)
            await redis.bgrewriteaof()  # so that the file begins with a blob that is to expire
            await eventually(lambda: rewritten(redis))
            record = await store.commit(record, state=b"adapted", step=1, learnt=blob)
        await asyncio.sleep(1.6)
    async with EmbeddedRedis(data) as own, connect(own.url) as redis:
        store = make_store(own.url)
        assert (await store.load("gate"))[0] == record
        assert await store.learnt(record) == b"more"
        assert await redis.pttl(blob_of(store, record)) == FOR_EVER


async def rewritten(redis):
    state = await redis.info("persistence")
    return not state["aof_rewrite_in_progress"] and not state["aof_rewrite_scheduled"]
