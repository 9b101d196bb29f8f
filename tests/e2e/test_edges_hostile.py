"""A real server and real edges, while the wire lies, an edge lies, or the server comes back with other weights."""

import hashlib
import hmac
import io
import json
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image
from servers import CLASSES, TINY, Api, Process, check_problem, data_folder, tiny_checkpoint, until
from tampering import Proxy, Wire, as_it_is, tampering_proxy

from normstream.clients.edge import EdgeClient, Options
from normstream.clients.edge.selection import Criteria
from normstream.clients.edge.spool import Waiting

BATCH = 4
RECIPE = {"norm": {"name": "tbr"}, "update": {"name": "cema", "teacher": "big", "batch": BATCH, "patience_s": 1}}
KEYS = {"north": "n" * 43, "south": "s" * 43}
EVERYTHING = Criteria(unreliable=100, uninformative=0, redundant=2)


def photo(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (180, 200, 3), dtype=np.uint8)


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("weights")
    return [tiny_checkpoint(folder, seed) for seed in range(3)]


def models(tiny: Path, big: Path) -> list[str]:
    hosted = {"tiny": tiny, "big": big}
    return [
        word
        for name, path in hosted.items()
        for word in ("--model", f"name={name},architecture={TINY},checkpoint={path},classes={CLASSES}")
    ]


@pytest.fixture(scope="module")
def server(checkpoints, tmp_path_factory, packages) -> Iterator[Process]:
    folder = tmp_path_factory.mktemp("server")
    data = data_folder(folder / "data", packages)
    process = Process(folder / "log", *models(*checkpoints[:2]), data=data, max_images=8)
    try:
        yield process.ready()
        assert process.stop() == 0
    finally:
        process.kill()


@pytest.fixture
def api(server) -> Iterator[Api]:
    with server.api() as api:
        yield api


@pytest.fixture
def proxy(server) -> Iterator[Proxy]:
    with tampering_proxy(server.url) as proxy:
        yield proxy


@pytest.fixture
def start(tmp_path) -> Iterator[Callable[..., EdgeClient]]:
    """Starts edges that send everything and wait for nothing; none outlives its test."""
    started: list[EdgeClient] = []

    def start(url: str, name: str, **changes: object) -> EdgeClient:
        options = Options(
            local=None,
            top_k=CLASSES,
            threads=1,
            criteria=EVERYTHING,
            linger_s=0.0,
            wait_s=2.0,
            report_every_s=1.0,
            batch=BATCH,
        )
        arguments = {"model": "tiny", "recipe": RECIPE, "options": options, "uniform": lambda *_: 0.3, **changes}
        started.append(EdgeClient(url, f"{tmp_path.name[-20:]}-{name}", tmp_path / name, **arguments))
        return started[-1]

    yield start
    for client in started:
        client.close()


def name_of(edge: EdgeClient) -> str:
    return edge.status().edge


def shown(api: Api, edge: EdgeClient) -> dict:
    return api.get(f"/v1/edges/{name_of(edge)}").json()


def learns(api: Api, edge: EdgeClient, seed: int) -> str:
    """Have the server learn a batch of the edge's images; return the tag of the version that comes of it."""
    before = shown(api, edge)
    edge.step([photo(100 * seed + i) for i in range(BATCH)])
    assert edge.drain(30)
    used = before["samples"]["used"] + BATCH
    until(lambda: shown(api, edge)["samples"]["used"] >= used, 60)
    return shown(api, edge)["tag"]


def answers(edge: EdgeClient) -> list[float]:
    """What the edge says of one image, as a number for each class. Its image is never sent: others decide of that."""
    network = edge._in_use.network
    return network.logits(np.full((1, 3, *edge.package.manifest.preprocessing.size), 0.3, np.float32))[0].tolist()


def signed(body: bytes, key: str) -> Wire:
    return Wire(body, f"hmac-sha256={hmac.new(key.encode(), body, hashlib.sha256).hexdigest()}")


def headed(update: Wire, key: str, **changes: object) -> Wire:
    """An update with another header, signed by whoever has the key."""
    line, _, payload = update.body.partition(b"\n")
    return signed(json.dumps({**json.loads(line), **changes}).encode() + b"\n" + payload, key)


def flipped(update: Wire) -> Wire:
    middle = len(update.body) // 2
    return Wire(update.body[:middle] + bytes([update.body[middle] ^ 1]) + update.body[middle + 1 :], update.signature)


NORTH = KEYS["north"]
TAMPERED = {
    "a bit flipped": (flipped, "signature is not of this edge's key"),
    "cut off": (lambda update: Wire(update.body[:-20], update.signature), "signature is not of this edge's key"),
    "emptied": (lambda update: Wire(b"", update.signature), "signature is not of this edge's key"),
    "unsigned": (lambda update: Wire(update.body, ""), "not signed"),
    "signed by another": (lambda update: signed(update.body, KEYS["south"]), "signature is not of this edge's key"),
    "corrupt and signed": (lambda update: signed(update.body[:-9], NORTH), "unpack"),
    "of another digest": (lambda update: headed(update, NORTH, digest="sha256:" + "0" * 64), "digest"),
    "for another edge": (lambda update: headed(update, NORTH, edge="east"), "for the edge east"),
    "for other weights": (lambda update: headed(update, NORTH, fingerprint="sha256:" + "0" * 64), "for the weights"),
}


@pytest.mark.timeout(400)
def test_a_wire_that_changes_updates_harms_nobody(server, api, proxy, start):
    north, south = start(proxy.url, "north", key=NORTH), start(server.url, "south", key=KEYS["south"])
    tag = learns(api, north, 1)
    until(lambda: north.status().version == tag, 30)
    other = learns(api, south, 2)
    until(lambda: south.status().version == other, 30)
    first, unharmed = proxy.seen[-1], (south.status().version, answers(south))
    for turn, (kind, (tamper, words)) in enumerate(TAMPERED.items(), 3):
        proxy.tamper = tamper
        good, rejected = answers(north), north.status().counters.rejected
        newest = learns(api, north, turn)
        state = api.state(shown(api, north)["stream"])
        until(lambda before=rejected: north.status().counters.rejected > before + 1, 60)
        status = north.status()
        assert words in status.problem, kind
        assert status.version == tag, kind
        assert answers(north) == good, kind
        assert len(north._recent) == status.counters.seen, kind
        assert api.state(shown(api, north)["stream"]) == state, kind
        assert shown(api, north)["tag"] == newest, kind
        proxy.tamper = as_it_is
        until(lambda newest=newest: north.status().version == newest, 60)
        until(lambda: north.status().problem is None, 30)
        assert answers(north) != good, kind
        tag = newest
    _an_old_one_comes_again(api, proxy, north, first)
    assert (south.status().version, answers(south)) == unharmed
    counters = south.status().counters
    assert (counters.rejected, counters.rolled_back, south.status().problem) == (0, 0, None)
    until(lambda: shown(api, north)["report"]["tag"] == north.status().version, 30)
    assert shown(api, north)["report"]["rolled_back"] == 0


def _an_old_one_comes_again(api: Api, proxy: Proxy, edge: EdgeClient, old: Wire) -> None:
    """A whole update of before, rightly signed: it was recorded."""
    before = json.loads(old.body.partition(b"\n")[0])["tag"]
    proxy.tamper = lambda _: old
    tag, good, rejected = edge.status().version, answers(edge), edge.status().counters.rejected
    assert before != tag
    newest = learns(api, edge, 50)
    until(lambda: edge.status().counters.rejected > rejected + 1, 60)
    assert f"version {before} is older than {tag}" in edge.status().problem
    assert (edge.status().version, answers(edge)) == (tag, good)
    proxy.tamper = as_it_is
    until(lambda: edge.status().version == newest, 60)


@pytest.mark.timeout(400)
def test_an_update_of_another_edge_is_none_of_ours(server, api, proxy, start):
    north, south = start(proxy.url, "north", key=NORTH), start(server.url, "south", key=KEYS["south"])
    learns(api, south, 1)
    bearer = {"Authorization": f"Bearer {KEYS['south']}"}
    answer = api.get(f"/v1/edges/{name_of(south)}/affine", headers=bearer)
    theirs = Wire(answer.content, answer.headers["Normstream-Signature"])
    before = north.status().version
    for update, words in ((theirs, "signature"), (signed(theirs.body, NORTH), f"for the edge {name_of(south)}")):
        proxy.tamper = lambda _, update=update: update
        rejected = north.status().counters.rejected
        newest = learns(api, north, 2)
        until(lambda rejected=rejected: north.status().counters.rejected > rejected + 1, 60)
        assert words in north.status().problem
        assert north.status().version == before
        assert north.step(photo(0))[0].version == before
        proxy.tamper = as_it_is
        before = until(lambda newest=newest: north.status().version == newest and newest, 60)


@pytest.mark.timeout(300)
def test_while_a_wire_lies_no_frame_waits(server, api, proxy, start):
    edge = start(proxy.url, "north", key=NORTH)
    tag = learns(api, edge, 1)
    until(lambda: edge.status().version == tag, 30)
    proxy.tamper = flipped
    learns(api, edge, 2)
    rejected, longest, steps = edge.status().counters.rejected, 0.0, 0
    while edge.status().counters.rejected < rejected + 4:
        began = time.perf_counter()
        (prediction,) = edge.step(photo(steps))
        longest, steps = max(longest, time.perf_counter() - began), steps + 1
        assert prediction.version == tag
    assert steps > 20
    assert longest < 2.0  # a machine that is busy with other tests makes it wait; a network call would take longer


REPORTS = [
    '{"seen": NaN}',
    '{"seen": -1}',
    '{"seen": 1e400}',
    '{"latency_ms": Infinity}',
    '{"tag": "../../etc"}',
    '{"excluded": {"unreliable": -5}}',
    '{"excluded": {"because": 1}}',
    '{"taken_at": {"a": NaN}}',
    '{"taken_at": {"a": 1e300}}',
    '{"taken_at": ' + json.dumps({str(i): 0 for i in range(10_001)}) + "}",
    "[" * 5000 + "]" * 5000,
    "{",
]
LIES = [
    {"seen": 2**53, "uploaded": 2**53, "rolled_back": 2**53, "latency_ms": 1e9, "excluded": {"spool": 2**53}},
    {"seen": 0, "uploaded": 2**53},
    {"tag": "f" * 32 + ".9999999999999999", "seen": 1},
    {"taken_at": {"never-sent": 1e11}},
]


@pytest.mark.timeout(300)
def test_an_edge_that_lies_harms_nobody(server, api, start):
    honest, liar = start(server.url, "north", key=NORTH), start(server.url, "liar", key="l" * 43)
    learns(api, liar, 1)
    path, bearer = f"/v1/edges/{name_of(liar)}", {"Authorization": "Bearer " + "l" * 43}
    liar.close()

    def tell(report: str, *images: tuple[str, bytes]) -> httpx.Response:
        files = [("report", (None, report.encode())), *(("images", image) for image in images)]
        return api.post(f"{path}/samples", files=files, headers=bearer)

    before = api.get(path).json()
    state = api.state(before["stream"])
    for report in REPORTS:
        check_problem(tell(report), 422, "report")
    assert api.get(path).json()["samples"] == before["samples"]
    assert api.get(path).json()["report"] == before["report"]
    for lie in LIES:
        assert tell(json.dumps(lie)).status_code == 202
        for page in (path, "/v1/edges", "/readyz"):
            assert api.get(page).status_code == 200
    assert tell(json.dumps({"taken_at": {"far": 1e11}}), ("far", encoded(photo(1)[:160, :160]))).status_code == 202
    until(lambda: api.get(path).json()["samples"]["used"] == before["samples"]["used"] + 1, 60)  # dated by the server
    assert api.state(before["stream"]) != state
    tag = learns(api, honest, 2)
    until(lambda: honest.status().version == tag, 30)


def noise(side: int) -> bytes:
    return encoded(np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8))


@pytest.mark.timeout(300)
def test_images_that_are_too_large_cost_neither_memory_nor_their_neighbours(server, api, start):
    edge = start(server.url, "north", key=NORTH)
    learns(api, edge, 1)
    edge.close()
    path, bearer = f"/v1/edges/{name_of(edge)}", {"Authorization": f"Bearer {NORTH}"}
    before, memory = api.get(path).json(), psutil.Process(server.pid).memory_info().rss
    fine = ("fine", encoded(photo(1)[:160, :160]))
    blank = encoded(np.zeros((6000, 6000, 3), np.uint8))  # 100 kilobytes that would be 100 megabytes
    for name, content in {"bytes": noise(700), "sides": noise(330), "bomb": blank}.items():
        files = [("images", fine), ("images", (name, content))]
        check_problem(api.post(f"{path}/samples", files=files, headers=bearer), 413, f"({name})")
    assert api.get(path).json()["samples"] == before["samples"]  # all or none
    assert psutil.Process(server.pid).memory_info().rss < memory + 64 * 2**20
    again = start(server.url, "north", key=NORTH)
    again._spool.put(Waiting("huge", noise(700), time.time()), 1.0)
    again._spool.put(Waiting("wide", noise(330), time.time()), 1.0)
    tag = learns(api, again, 2)
    until(lambda: again.status().version == tag, 30)
    until(lambda: again.status().counters.unwanted == 2, 30)
    assert again.status().waiting == 0


@pytest.mark.timeout(400)
def test_a_server_that_comes_back_with_other_weights(checkpoints, tmp_path, start, packages):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    served = tmp_path / "served"
    data = data_folder(served / "data", packages)

    def serve(tiny: Path) -> Process:
        return Process(served / "log", *models(tiny, checkpoints[1]), "--port", port, data=data).ready()

    server = serve(checkpoints[0])
    try:
        edge = start(server.url, "north", key=NORTH)
        with server.api() as api:
            tag = learns(api, edge, 1)
            until(lambda: edge.status().version == tag, 30)
            had = edge.status().fingerprint
        server.stop()
        server = serve(checkpoints[2])
        with server.api() as api:
            stream = shown(api, edge)["stream"]
            assert edge.step(photo(0))[0].version == tag
            # An edge that is behind is not sent what was learnt with the old weights as if it were of the new ones.
            behind = api.get(f"/v1/edges/{name_of(edge)}/affine", headers={"Authorization": f"Bearer {NORTH}"})
            check_problem(behind, 409, "was made for model 'tiny' with fingerprint")
            assert api.delete(f"/v1/streams/{stream}").status_code == 204  # what it learnt was of the old weights
            until(lambda: edge.status().fingerprint != had, 90)
            hosted = {model["name"]: model["fingerprint"] for model in api.get("/v1/models").json()["models"]}
            assert edge.status().fingerprint == hosted["tiny"]
            tag = learns(api, edge, 2)
            until(lambda: edge.status().version == tag, 60)
            assert edge.status().counters.rolled_back == 0
            assert edge.status().problem is None
    finally:
        server.kill()
