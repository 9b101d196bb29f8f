"""What a stream has learnt, and its scores, in the store: they change with the state, and travel when they must."""

import os

import pytest
from stores import STEP, Line, Traffic, create, step

from normstream.service.storage.records import Conflict, StoreUnavailable
from normstream.service.storage.redis_link import connect

NEW_FIELDS = ("learnt", "learnt_tag", "scores")


async def test_a_stream_begins_with_what_it_is_given(store, worker):
    record, _ = await create(store, learnt=b"network")
    assert (record.learnt, record.scores, record.state_bytes) == (b"network", b"", len(b"source" + b"network"))
    assert record.learnt_tag
    assert (await worker.load("gate"))[0] == record
    assert (await worker.peek("gate")).state_bytes == record.state_bytes
    plain, _ = await create(store, "plain")
    assert (plain.learnt, plain.learnt_tag, plain.scores) == (b"", "", b"")


async def test_a_commit_changes_what_it_is_given_and_leaves_the_rest(store, worker):
    first, _ = await create(store, learnt=b"network")
    second = await step(store, first, learnt=b"more", scores=b"1/2")
    assert (second.learnt, second.scores, second.state_bytes) == (b"more", b"1/2", len(b"adapted" + b"more"))
    assert second.learnt_tag not in ("", first.learnt_tag)
    assert (await worker.load("gate"))[0] == second
    third = await step(worker, second, b"x")
    assert (third.learnt, third.learnt_tag, third.scores) == (b"more", second.learnt_tag, b"1/2")
    assert (await store.load("gate"))[0] == third
    fourth = await step(store, third, learnt=b"", scores=b"")
    assert (fourth.learnt, fourth.learnt_tag, fourth.scores) == (b"", "", b"")
    assert (await worker.load("gate"))[0] == fourth


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


async def test_a_fork_has_learnt_the_same_and_no_scores(store):
    record, _ = await create(store, learnt=b"network")
    record = await step(store, record, learnt=b"more", scores=b"1/2")
    fork = await store.fork("gate", "gate-2")
    assert (fork.learnt, fork.scores) == (b"more", b"")
    await step(store, fork, learnt=b"elsewhere")
    assert (await store.load("gate"))[0] == record


async def test_what_was_learnt_travels_only_when_it_changed(store, worker, redis_url):
    record, _ = await create(store, learnt=os.urandom(2_000_000))
    async with connect(redis_url) as redis:
        traffic = Traffic(redis)
        await worker.load("gate")
        assert await traffic.since() > 2_000_000
        for _ in range(3):
            record = await step(store, record, os.urandom(100), scores=b"1/2")
            assert (await worker.load("gate"))[0] == record
        assert await traffic.since() < 20_000
        record = await step(worker, record, learnt=os.urandom(2_000_000))
        assert (await worker.load("gate"))[0] == record
        assert await traffic.since() < 20_000
        assert (await store.load("gate"))[0] == record
        assert await traffic.since() > 2_000_000


async def test_streams_of_before_are_read_and_may_learn(store, make_store, redis_url):
    record, _ = await create(store)
    async with connect(redis_url) as redis:
        await redis.hdel(store._keys.stream("gate"), *NEW_FIELDS)
    assert (await make_store().load("gate"))[0] == record
    assert await create(make_store()) == (record, False)
    record = await step(store, record)
    record = await step(make_store(), record, learnt=b"network", scores=b"1/2")
    assert (await store.load("gate"))[0] == record


async def test_nobody_takes_what_a_predecessor_learnt_for_a_stream_of_before(store, worker, redis_url):
    await create(store, learnt=b"network")
    await worker.load("gate")
    await store.delete("gate")
    new, _ = await create(store)
    async with connect(redis_url) as redis:
        await redis.hdel(store._keys.stream("gate"), *NEW_FIELDS)
    assert (await worker.load("gate"))[0] == new


async def test_a_version_that_came_back_keeps_what_it_learnt_itself(store, worker, redis_url):
    record, _ = await create(store, learnt=b"network")
    lost = await step(store, record, learnt=b"lost")
    async with connect(redis_url) as redis:  # a fail-over to a replica that had not heard of the last commit
        before = {"version": 1, "learnt": b"network", "learnt_tag": record.learnt_tag, "done": ""}
        await redis.hset(store._keys.stream("gate"), mapping=before)
    second = await step(worker, record, learnt=b"second")
    assert second.version == lost.version
    with pytest.raises(Conflict):
        await step(store, lost)
    assert (await store.load("gate"))[0].learnt == b"second"


async def test_a_lesson_that_landed_but_lost_its_reply_is_a_success(make_store, worker, redis_url, data):
    async with Line(redis_url, data.with_name("line.sock")) as line:
        store = make_store(line.url)
        record = await step(store, (await create(store, learnt=b"network"))[0])
        line.armed = True
        new = await step(store, record, learnt=b"once", scores=b"1/2")
        assert line.cut.is_set()
        assert (await worker.load("gate"))[0] == new
        assert (new.version, new.learnt) == (3, b"once")


async def test_out_of_memory_a_lesson_writes_nothing_by_halves(make_store, own_redis):
    store = make_store(own_redis.url)
    record, _ = await create(store, learnt=b"network")
    async with connect(own_redis.url) as redis:
        await redis.config_set("maxmemory", 1)
        with pytest.raises(StoreUnavailable, match="no memory left"):
            await step(store, record, learnt=b"more", scores=b"1/2", events=[STEP], labelled=[("a-0", "cat")])
        assert (await make_store(own_redis.url).load("gate"))[0] == record
        assert await store.unlabelled("gate", ["a-0"]) == {}
        await redis.config_set("maxmemory", 0)
    await step(store, record, learnt=b"more")
