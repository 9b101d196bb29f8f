"""Edges, samples and releases against a real Redis: what is kept, and what a crash or a race cannot break."""

import asyncio
from typing import Any

import pytest
from redis import Redis

from normstream.service.storage.keyspace import Keyspace
from normstream.service.storage.records import (
    Conflict,
    EdgeRecord,
    QueueFull,
    StoreUnavailable,
    Tally,
    UnknownEdge,
    UnknownStream,
)
from normstream.service.storage.release_shelf import KEPT
from normstream.service.storage.sample_queue import SampleQueue
from normstream.service.storage.store import Store

KEY = "k" * 32


def edge(edge_id: str = "gate", **changes: Any) -> EdgeRecord:
    known = {"key": KEY, "model": "lite0", "recipe": "{}", "group": None, "stream": f"edge-{edge_id}"}
    return EdgeRecord(**{"id": edge_id, "created_at": 1.5, **known, **changes})


def sample(name: str, size: int = 10) -> tuple[str, bytes, float]:
    return name, name[:1].encode() * size, 7.25


async def stream(store: Store, stream_id: str = "gate") -> Any:
    record, _ = await store.create(stream_id, model="lite0", fingerprint="sha256:1", recipe="{}", state=b"source")
    return record


def names(*samples: str, of: str = "e") -> list[str]:
    return [f"{of}/{each}" for each in samples]


# Edges


async def test_an_edge_is_kept_found_noted_and_dropped(store: Store, worker: Store) -> None:
    assert await store.edges.put(edge()) == (edge(), True)
    assert await worker.edges.get("gate") == edge()
    await store.edges.note("gate", {"last_seen": 9.5, "acknowledged": "ab.1"}, bytes_up=7)
    await worker.edges.note("gate", {"last_seen": 10.5, "report": "{}"}, bytes_down=5)
    noted = await store.edges.get("gate")
    assert (noted.last_seen, noted.acknowledged, noted.report) == (10.5, "ab.1", "{}")
    assert (noted.bytes_up, noted.bytes_down) == (7, 5)
    assert await store.edges.delete("gate") == (noted, True)
    for call in (store.edges.get("gate"), store.edges.delete("gate")):
        with pytest.raises(UnknownEdge, match="'gate'"):
            await call


async def test_an_edge_that_is_there_is_answered_as_it_is(store: Store, worker: Store) -> None:
    await store.edges.put(edge())
    assert await worker.edges.put(edge(key="x" * 32)) == (edge(), False)
    made = await asyncio.gather(*(each.edges.put(edge("b")) for each in [store, worker] * 10))
    assert sum(new for _, new in made) == 1


async def test_what_is_heard_of_an_edge_that_is_gone_makes_none(store: Store) -> None:
    await store.edges.note("ghost", {"last_seen": 1.0}, bytes_up=1)
    with pytest.raises(UnknownEdge):
        await store.edges.get("ghost")


async def test_the_last_edge_of_a_stream_is_known_as_such(store: Store) -> None:
    for each in ("a", "b"):
        await store.edges.put(edge(each, group="fog", stream="group-fog"))
    assert (await store.edges.delete("a"))[1] is False
    assert (await store.edges.delete("b"))[1] is True


async def test_edges_are_listed_page_by_page_and_the_gone_leave_the_list(store: Store, redis_url: str) -> None:
    for each in ("c", "a", "d", "b"):
        await store.edges.put(edge(each))
    with Redis.from_url(redis_url) as redis:
        redis.delete(keys(store).edge("b"))
        page, after = await store.edges.page(2, None)
        assert ([each.id for each in page], after) == (["a", "c"], "c")
        assert redis.zscore(keys(store).edges, "b") is None
    page, after = await store.edges.page(2, after)
    assert ([each.id for each in page], after) == (["d"], None)


async def test_the_record_of_another_edge_is_refused(store: Store, redis_url: str) -> None:
    await store.edges.put(edge())
    with Redis.from_url(redis_url) as redis:
        redis.rename(keys(store).edge("gate"), keys(store).edge("other"))
    with pytest.raises(StoreUnavailable, match="refused"):
        await store.edges.get("other")


def test_a_key_is_not_shown_with_its_record() -> None:
    assert KEY not in repr(edge())


def keys(store: Store) -> Keyspace:
    return store._keys


# Samples


async def test_samples_come_out_in_the_order_they_came_and_count_once(store: Store, worker: Store) -> None:
    await stream(store)
    first = await store.samples.add("gate", "e", [sample("b"), sample("a"), sample("b")])
    again = await worker.samples.add("gate", "e", [sample("a"), sample("c")])
    assert ((first.accepted, first.pending), (again.accepted, again.pending)) == ((2, 2), (1, 3))
    found = await worker.samples.first("gate", 10)
    assert [each.id for each in found] == names("b", "a", "c")
    assert [each.image for each in found] == [b"b" * 10, b"a" * 10, b"c" * 10]
    assert {each.taken_at for each in found} == {7.25}
    assert [each.id for each in await store.samples.first("gate", 2)] == names("b", "a")
    assert await store.samples.tally([("gate", "e"), ("gate", "no")]) == [Tally(received=3), Tally()]


async def test_the_order_holds_whatever_the_time(make_store: Any) -> None:
    store = make_store(clock=lambda: 1763753005.4986455)  # a microsecond more is the same, to six places
    await stream(store)
    await store.samples.add("gate", "e", [sample("b"), sample("a")])
    assert await store.samples.ids("gate") == names("b", "a")


async def test_edges_of_one_stream_may_use_the_same_ids(store: Store) -> None:
    await stream(store)
    for each in ("one", "two"):
        assert (await store.samples.add("gate", each, [sample("1")])).accepted == 1
    assert await store.samples.ids("gate") == ["one/1", "two/1"]


async def test_a_full_queue_takes_all_or_nothing(make_store: Any) -> None:
    store = make_store(max_samples=3, max_sample_bytes=1000)
    await stream(store)
    await store.samples.add("gate", "e", [sample("a"), sample("b")])
    for more in ([sample("c"), sample("d")], [sample("c", 990)]):
        with pytest.raises(QueueFull, match="2 samples of 36 bytes wait"):
            await store.samples.add("gate", "e", more)
    assert await store.samples.ids("gate") == names("a", "b")
    # What came before is no more to take.
    assert (await store.samples.add("gate", "e", [sample("a"), sample("b"), sample("c")])).accepted == 1
    assert (await store.samples.add("gate", "e", [sample("a")])).accepted == 0
    assert await store.samples.tally([("gate", "e")]) == [Tally(received=3)]


async def test_an_edge_leaves_room_for_others_of_its_group(make_store: Any) -> None:
    store = make_store(max_samples=12, max_sample_bytes=100_000)
    record = await stream(store)

    async def sent(edge_id: str, size: int = 10) -> int:
        """How many samples are taken in before one is refused."""
        for number in range(20):
            try:
                await store.samples.add("gate", edge_id, [sample(f"{size}-{number}", size)], shared=True)
            except QueueFull:
                return number
        return 20

    assert [await sent(each) for each in "abc"] == [6, 3, 1], "of what is left each may take half"
    assert (await store.samples.add("gate", "d", [sample("x"), sample("y")], shared=True)).accepted == 2
    with pytest.raises(QueueFull, match="12 samples"):
        await store.samples.add("gate", "e", [sample("x")], shared=True)
    await store.commit(record, state=b"learnt", step=1, used=await store.samples.ids("gate"))
    assert await sent("a", 15_000) == 3, "nor may it take all bytes"
    assert (await store.samples.add("gate", "b", [sample("large", 50_000)], shared=True)).accepted == 1


async def test_the_commit_takes_its_samples_out_of_the_queue(store: Store, worker: Store) -> None:
    record = await stream(store)
    await store.samples.add("gate", "e", [sample(each) for each in "abcd"])
    new = await store.commit(record, state=b"learnt", step=1, used=names("a", "c"), dropped=names("d"))
    assert (new.version, new.state) == (2, b"learnt")
    assert (await worker.load("gate"))[0] == new
    assert await worker.samples.ids("gate") == names("b")
    (tally,) = await worker.samples.tally([("gate", "e")])
    assert (tally, tally.pending) == (Tally(received=4, used=2, dropped=1), 1)
    assert (await store.samples.add("gate", "e", [sample("a")])).accepted == 0
    (waiting,) = [each for each in await worker.samples.waiting() if each.stream == "gate"]
    assert (waiting.samples, waiting.taught_at, waiting.model) == (1, new.updated_at, "lite0")


async def test_a_commit_that_comes_too_late_takes_nothing(store: Store, worker: Store) -> None:
    record = await stream(store)
    await store.samples.add("gate", "e", [sample("a")])
    await worker.commit(record, state=b"theirs", step=1)
    with pytest.raises(Conflict):
        await store.commit(record, state=b"mine", step=1, used=names("a"))
    assert await store.samples.ids("gate") == names("a")
    await store.delete("gate")
    with pytest.raises(UnknownStream):
        await store.commit(record, state=b"mine", step=1, used=names("a"))


async def test_of_two_workers_that_learn_the_same_one_counts(store: Store, worker: Store) -> None:
    record = await stream(store)
    await store.samples.add("gate", "e", [sample(each) for each in "ab"])
    outcomes = await asyncio.gather(
        *(each.commit(record, state=b"learnt", step=1, used=names("a", "b")) for each in (store, worker)),
        return_exceptions=True,
    )
    assert sorted(type(each).__name__ for each in outcomes) == ["Conflict", "StreamRecord"]
    assert await store.samples.tally([("gate", "e")]) == [Tally(received=2, used=2)]


async def test_room_comes_back_with_what_leaves(make_store: Any) -> None:
    store = make_store(max_sample_bytes=100)
    record = await stream(store)
    for number in range(20):
        await store.samples.add("gate", "e", [sample(f"{number}", 80)])
        record = await store.commit(record, state=b"", step=number, used=names(f"{number}"))
    await store.samples.add("gate", "e", [sample("a", 80)])
    await store.samples.drop("gate", names("a"))
    assert (await store.samples.add("gate", "e", [sample("b", 80)])).pending == 1


async def test_a_deleted_stream_takes_its_samples_along(store: Store, worker: Store) -> None:
    await stream(store)
    await store.samples.add("gate", "e", [sample("a")])
    await store.releases.put("gate", "float16", "ab.1", b"release")
    await worker.delete("gate")
    assert await store.samples.ids("gate") == []
    assert await store.samples.waiting() == []
    assert await store.releases.get("gate", "float16", "ab.1") is None
    await stream(store)
    assert (await store.samples.add("gate", "e", [sample("a")])).accepted == 1
    assert await store.samples.tally([("gate", "e")]) == [Tally(received=1)]


async def test_streams_without_samples_leave_the_list_and_come_back(store: Store, redis_url: str) -> None:
    await stream(store)
    await store.samples.add("gate", "e", [sample("a")])
    await store.samples.drop("gate", names("a"))
    assert await store.samples.waiting() == []
    with Redis.from_url(redis_url) as redis:
        assert redis.zcard(keys(store).waiting) == 0
    await store.samples.add("gate", "e", [sample("b")])
    assert [each.stream for each in await store.samples.waiting()] == ["gate"]


async def test_samples_that_come_while_the_list_is_cleared_are_found(
    store: Store, worker: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The very moment between looking at an empty queue and taking it off the list."""
    await stream(store)
    await store.samples.add("gate", "e", [sample("a")])
    await store.samples.drop("gate", names("a"))
    looked_at = SampleQueue._looked_at

    async def slow(self: SampleQueue, ids: Any) -> Any:
        found = await looked_at(self, ids)
        monkeypatch.setattr(SampleQueue, "_looked_at", looked_at)
        await worker.samples.add("gate", "e", [sample("b")])
        return found

    monkeypatch.setattr(SampleQueue, "_looked_at", slow)
    await store.samples.waiting()
    assert [each.stream for each in await store.samples.waiting()] == ["gate"]


async def test_samples_grow_old(make_store: Any) -> None:
    now = [1000.0]
    store = make_store(clock=lambda: now[0])
    await stream(store)
    await store.samples.add("gate", "e", [sample("a"), sample("b")])
    now[0] += 100
    await store.samples.add("gate", "e", [sample("c")])
    assert await store.samples.ids("gate", until=1050) == names("a", "b")
    (waiting,) = await store.samples.waiting()
    assert waiting.oldest_at == pytest.approx(1000, abs=0.01)


async def test_attempts_that_fail_are_told_and_the_last_one_gives_the_samples_up(store: Store) -> None:
    await stream(store)
    watch = await store.events("gate")
    await store.samples.add("gate", "e", [sample("a"), sample("b")])
    for attempt in (1, 2, 3):
        assert await store.samples.ids("gate") == names("a", "b")
        told = {"alarm": "lesson_failed"}
        assert await store.samples.fail("gate", names("a"), told, attempts=3) == attempt
        event = await anext(watch)
        assert (event.type, event.data) == ("alarm", b'{"alarm": "lesson_failed"}')
    await watch.aclose()
    assert await store.samples.ids("gate") == names("b")
    assert await store.samples.tally([("gate", "e")]) == [Tally(received=2, dropped=1)]
    assert await store.samples.fail("gate", names("b"), {}, attempts=3) == 1
    assert await store.samples.fail("no", names("b"), {}, attempts=3) == 0


async def test_an_edge_that_leaves_a_group_takes_its_samples_along(store: Store) -> None:
    await stream(store)
    for each in ("one", "two"):
        await store.samples.add("gate", each, [sample("1"), sample("2")])
    await store.samples.forget_edge("gate", "one")
    assert await store.samples.ids("gate") == ["two/1", "two/2"]
    assert await store.samples.tally([("gate", "one"), ("gate", "two")]) == [Tally(), Tally(received=2)]


async def test_a_lease_is_one_workers_until_it_lets_go(store: Store, worker: Store) -> None:
    async with store.samples.lease("gate") as first:
        await store.samples.renew("gate")
        async with worker.samples.lease("gate") as second:
            assert (first, second) == (True, False)
        async with worker.samples.lease("other") as other:
            assert other
    async with worker.samples.lease("gate") as second:
        assert second


async def test_a_lease_that_was_lost_is_not_taken_from_its_new_holder(
    store: Store, worker: Store, redis_url: str
) -> None:
    with Redis.from_url(redis_url) as redis:
        async with store.samples.lease("gate"):
            redis.delete(keys(store).lease("gate"))
            async with worker.samples.lease("gate") as held:
                assert held
                mine = redis.get(keys(store).lease("gate"))
            redis.set(keys(store).lease("gate"), mine, px=1000)
        assert redis.get(keys(store).lease("gate")) == mine


async def test_out_of_memory_is_said_and_takes_nothing_in_by_halves(make_store: Any, own_redis: Any) -> None:
    store = make_store(own_redis.url, timeout_s=5)
    await stream(store)
    with Redis.from_url(own_redis.url) as redis:
        redis.config_set("maxmemory", 1)
        with pytest.raises(StoreUnavailable, match="no memory left"):
            await store.samples.add("gate", "e", [sample("a")])
        redis.config_set("maxmemory", 0)
    assert await store.samples.ids("gate") == []
    assert await store.samples.tally([("gate", "e")]) == [Tally()]


# Releases


async def test_the_last_releases_are_kept_by_precision(store: Store, worker: Store) -> None:
    for version in range(KEPT + 2):
        await store.releases.put("gate", "float16", f"ab.{version}", b"%d" % version)
    await store.releases.put("gate", "float32", "ab.0", b"exact")
    await worker.releases.put("gate", "float16", f"ab.{KEPT}", b"other")
    found = [await worker.releases.get("gate", "float16", f"ab.{version}") for version in range(KEPT + 2)]
    assert found == [None, None, *(b"%d" % version for version in range(2, KEPT + 2))]
    assert await store.releases.get("gate", "float32", "ab.0") == b"exact"
    assert await store.releases.get("other", "float32", "ab.0") is None
