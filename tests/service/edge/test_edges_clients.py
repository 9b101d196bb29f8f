"""Whole edge clients and a real server: what both of them know in the end, whatever happened between."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from edges import BATCH, SLOW_S, taught
from PIL import Image
from redis import Redis
from servers import CLASSES, Api, Live, live, new_id, until

from normstream.adaptation import ModelSpec
from normstream.clients.edge import EdgeClient, Options
from normstream.clients.edge.clock import Clock
from normstream.clients.edge.samples import QUEUED
from normstream.clients.edge.selection import Criteria
from normstream.clients.edge.spool import Spool, Waiting
from normstream.service.settings import Settings
from normstream.service.storage.keyspace import Keyspace

EVERYTHING = Criteria(unreliable=100, uninformative=0, redundant=2)
PAGE = 4096  # of the spool, which a sample takes
RECENT = 8


def frame(seed: int) -> Image.Image:
    """An image without detail, whose sample is small."""
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((200, 180), Image.Resampling.BICUBIC)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., EdgeClient]]:
    """Starts edges that send everything at once; none outlives its test."""
    started: list[EdgeClient] = []

    def start(url: str, name: str, *, options: dict[str, Any], **arguments: Any) -> EdgeClient:
        given = {"criteria": EVERYTHING, "top_k": CLASSES, "threads": 1, "batch": BATCH, "linger_s": 0.0, **options}
        soon: Any = {"uniform": lambda _, longest_s: longest_s / 1000}
        client = EdgeClient(
            url, name, tmp_path / name, model="tiny", recipe=taught(), options=Options(**given), **soon, **arguments
        )
        started.append(client)
        return client

    yield start
    for client in started:
        client.close()


def shown(api: Api, edge: EdgeClient) -> dict[str, Any]:
    """What the server knows of an edge."""
    answer = api.get(f"/v1/edges/{edge.status().edge}")
    assert answer.status_code == 200, answer.text
    return answer.json()


def learnt(api: Api, edge: EdgeClient, samples: int) -> str:
    """The version, when so many of an edge's samples have been learnt from and it is in use there."""
    until(lambda: shown(api, edge)["samples"]["used"] == samples, SLOW_S)
    tag = shown(api, edge)["tag"]
    until(lambda: edge.status().version == tag, SLOW_S)
    return tag


# A group


def logits(edge: EdgeClient) -> np.ndarray:
    """What the edge says of an image that it does not send."""
    image = np.full((1, 3, *edge.package.manifest.preprocessing.size), 0.3, np.float32)
    return edge._in_use.network.logits(image)


def test_edges_of_a_group_run_the_same_and_go_on_without_one_another(
    cloud: Live, api: Api, start: Callable[..., EdgeClient]
) -> None:
    group, names = new_id("fog"), (new_id("north"), new_id("south"))
    edges = [start(cloud.url, name, group=group, options={"local": None, "wait_s": 5.0}) for name in names]
    north, south = edges
    untaught = logits(north)
    for number, edge in enumerate(edges):  # half a batch of each
        edge.step([frame(10 * number + place) for place in range(BATCH // 2)])
        assert edge.drain(SLOW_S)
    (tag,) = {learnt(api, edge, BATCH // 2) for edge in edges}
    assert api.show(f"group-{group}")["step"] == 1
    assert {shown(api, edge)["samples"]["received"] for edge in edges} == {BATCH // 2}
    np.testing.assert_array_equal(logits(north), logits(south))
    assert not np.array_equal(logits(north), untaught)

    was = logits(south)
    south.close()
    north.step([frame(100 + place) for place in range(BATCH)])
    assert north.drain(SLOW_S)
    newer = learnt(api, north, BATCH // 2 + BATCH)
    assert newer != tag == south.status().version
    assert api.show(f"group-{group}")["step"] == 2
    assert not np.array_equal(logits(north), was)

    again = start(cloud.url, names[1], group=group, options={"local": None, "wait_s": 5.0})
    until(lambda: again.status().version == newer, SLOW_S)
    np.testing.assert_array_equal(logits(north), logits(again))
    assert [edge.status().counters.rolled_back for edge in (north, again)] == [0, 0]


# A server that is away


@dataclass
class Hours:
    """A clock that goes on by itself and can be put forward; it lags, so that the server finds no sample too young."""

    behind_s: float = 3600.0

    def clock(self) -> Clock:
        return Clock(lambda: time.time() - self.behind_s, lambda: time.monotonic() - self.behind_s)


@pytest.fixture
def offered(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """What each sample that comes to a spool is worth there: half with each hour that it is older."""
    worth: dict[str, float] = {}
    put = Spool.put

    def noted(spool: Spool, sample: Waiting, usefulness: float) -> None:
        worth[sample.id] = math.log2(max(usefulness, 1e-9)) + sample.taken_at / 3600
        put(spool, sample, usefulness)

    monkeypatch.setattr(Spool, "put", noted)
    return worth


def test_an_hour_without_its_server_costs_an_edge_its_least_useful_samples_and_no_frame(
    redis_url: str,
    tiny_models: tuple[ModelSpec, ModelSpec],
    kept: Path,
    start: Callable[..., EdgeClient],
    offered: dict[str, float],
) -> None:
    settings = Settings(models=tiny_models, redis_url=redis_url, data=kept, drain_timeout_s=2)
    name, hours, room = new_id("gate"), Hours(), 16
    with live(settings) as server, Api(server.url, timeout=SLOW_S) as api:
        url = httpx.URL(server.url)
        options = {"spool_bytes": room * PAGE, "recent": RECENT, "quality": 50, "report_every_s": 1.0}
        edge = start(server.url, name, clock=hours.clock(), options=options)
        edge.step([frame(seed) for seed in range(BATCH)])
        assert edge.drain(SLOW_S)
        tag = learnt(api, edge, BATCH)
    first = set(offered)
    assert len(first) == BATCH

    for minute in range(60):
        hours.behind_s -= 60
        predictions = edge.step([frame(100 + 2 * minute + place) for place in range(2)])
        assert [prediction.version for prediction in predictions] == [tag, tag]
        assert all(math.isclose(sum(each.probability for each in one.top), 1) for one in predictions)
        until(lambda: not edge._keeper.queue.unfinished_tasks)
        within_bounds(edge, room)
    assert until(lambda: edge.status().problem)
    until(lambda: edge.status().counters.excluded["spool"] == 120 - room)
    status, kept_back = edge.status(), set(offered) - first
    assert status.counters.seen == BATCH + 120
    assert status.waiting == room
    most_useful = set(sorted(kept_back, key=offered.__getitem__)[-room:])
    assert most_useful != set(list(offered)[-room:])  # it is not age alone

    with live(settings, port=url.port) as server, Api(server.url, timeout=SLOW_S) as api:
        until(lambda: edge.status().waiting == 0, SLOW_S)
        newer = learnt(api, edge, BATCH + room)
        assert newer != tag
        told = until(lambda: (found := shown(api, edge))["report"]["uploaded"] == BATCH + room and found, SLOW_S)
        assert told["samples"] == {"received": BATCH + room, "used": BATCH + room, "dropped": 0, "pending": 0}
        assert told["report"]["excluded"]["spool"] == 120 - room
        assert told["report"]["seen"] == BATCH + 120
        assert api.show(told["stream"])["step"] == 1 + room / BATCH
        with Redis.from_url(redis_url) as redis:
            came = {each.decode() for each in redis.zrange(Keyspace("normstream").known(told["stream"]), 0, -1)}
        assert came == {f"{name}/{sample}" for sample in first | most_useful}
        assert edge.status().counters.uploaded == BATCH + room
        assert edge.step([frame(0)])[0].version == newer
        assert (edge.status().problem, edge.status().counters.rolled_back) == (None, 0)


def within_bounds(edge: EdgeClient, room: int) -> None:
    """Nothing that an edge keeps is more than it may be."""
    status = edge.status()
    assert status.waiting_bytes == PAGE * status.waiting <= PAGE * room
    assert edge._keeper.queue.qsize() <= QUEUED
    assert len(edge._recent) <= RECENT
    assert len(edge._link._sockets) <= 2  # one of who uploads, one of who asks
    # One that begins with a dot is being written, and soon has its name.
    files = [path for path in edge._folder.path.iterdir() if path.is_file() and not path.name.startswith(".")]
    assert sum(path.stat().st_size for path in files) < 8 * 2**20
