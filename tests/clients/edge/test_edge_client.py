import io
import json
import math
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cloud import Cloud, cloud, problem, sign, update_body
from PIL import Image

from normstream.clients.edge.client import EdgeClient
from normstream.clients.edge.clock import Clock
from normstream.clients.edge.errors import BadImage
from normstream.clients.edge.folder import Folder
from normstream.clients.edge.link import Unwelcome
from normstream.clients.edge.local import EMA, AlphaBN
from normstream.clients.edge.options import Options
from normstream.clients.edge.package import Package
from normstream.clients.edge.preprocessing import normalise, preprocess
from normstream.clients.edge.runtime import Runtime
from normstream.clients.edge.selection import Criteria
from normstream.clients.edge.status import Counters, Status
from normstream.clients.errors import ConnectionFailed, InvalidArgument

KEY = "k" * 43
ALL = Criteria(unreliable=100, uninformative=0, redundant=2)  # everything is worth sending
NONE = Criteria(unreliable=1e-9)
SOON = {"linger_s": 0.0, "wait_s": 0.2, "report_every_s": 1.0}


def photo(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8)


def until(check: Callable[[], Any], limit_s: float = 20.0) -> Any:
    deadline = time.monotonic() + limit_s
    while not (answer := check()):
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.01)
    return answer


@pytest.fixture
def package(convolutions_package) -> Package:
    return convolutions_package


@pytest.fixture
def server(package):
    with cloud(package.folder) as running:
        yield running


@pytest.fixture
def start(server, tmp_path):
    """Starts edges, of which none outlives its test."""
    started = []

    def start(folder: str = "edge", edge: str = "gate", **arguments: Any) -> EdgeClient:
        options = Options(**{"criteria": ALL, **SOON, **arguments.pop("options", {})})
        client = EdgeClient(arguments.pop("server", server.url), edge, tmp_path / folder, options=options, **arguments)
        started.append(client)
        return client

    yield start
    for client in started:
        client.close()


class Publisher:
    """Makes updates as the server does, from how far the parameters lie from the package's own."""

    def __init__(self, server: Cloud, package: Package, edge: str = "gate") -> None:
        self.server = server
        self.package = package
        self.edge = edge
        self.manifest = json.loads((package.folder / "manifest.json").read_bytes())
        self.tag = "a.0"
        self.plain: bytes | None = None

    @property
    def key(self) -> str:
        return self.server.edges[self.edge]["key"]

    def parameters(self, seed: int, size: float = 0.05) -> dict[str, np.ndarray]:
        random = np.random.default_rng(seed)
        source = self.package.source
        offsets = {name: random.normal(0, size, len(value)).astype(np.float16) for name, value in source.items()}
        parameters = {name: source[name] + offset.astype(np.float32) for name, offset in offsets.items()}
        self.offsets = offsets
        return parameters | {"var": np.maximum(parameters["var"], 0)}

    def publish(self, seed: int, *, delta: bool = False, key: str = "", probe: float = 0.0, **changes: Any) -> dict:
        parameters = changes.pop("parameters", None) or self.parameters(seed)
        reference = normalise(self.package.reference, self.package.manifest.preprocessing)
        logits = Runtime(self.package, parameters).logits(reference) + np.float32(probe)
        base = (self.tag, self.plain) if delta else None
        self.tag = f"a.{seed}"
        body, self.plain = update_body(
            self.manifest,
            self.offsets,
            logits,
            **{"edge": self.edge, "tag": self.tag, "precision": "float16", **changes},
            base=base,
        )
        self.server.publish(self.tag, body, sign(key or self.key, body))
        return parameters


@pytest.fixture
def publisher(server, package) -> Publisher:
    return Publisher(server, package)


def logits(package: Package, parameters: Any, image: np.ndarray) -> np.ndarray:
    return Runtime(package, parameters).logits(preprocess([image], package.manifest.preprocessing))


def answers(client: EdgeClient, parameters: Any, image: np.ndarray) -> bool:
    """Whether the client answers as a network with these parameters."""
    row = logits(client.package, parameters, image)[0].astype(np.float64)
    expected = np.exp(row - row.max())
    got = {each.index: each.probability for each in client.step([image])[0].top}
    return np.allclose([got[i] for i in sorted(got)], (expected / expected.sum())[sorted(got)], atol=1e-4)


def test_a_new_edge_registers_fetches_its_model_and_predicts(server, start, package, tmp_path):
    client = start(options={"top_k": 3})
    (prediction,) = client.step([photo()])
    assert [each.probability for each in prediction.top] == sorted(
        (e.probability for e in prediction.top), reverse=True
    )
    assert len(prediction.top) == 3
    assert prediction.version is None
    assert answers(start("other", "other", options={"top_k": 1000}), package.source, photo(1))
    assert server.calls[0] == "POST /v1/edges"
    assert len(server.edges["gate"]["key"]) >= 32
    mode = stat.S_IMODE((tmp_path / "edge/edge.json").stat().st_mode)
    assert mode == 0o600


def test_any_form_of_image_is_taken_and_a_broken_one_refused(start, tmp_path):
    client = start()
    path = tmp_path / "a.png"
    Image.fromarray(photo()).save(path)
    forms = [photo(), Image.fromarray(photo()), path, str(path), path.read_bytes()]
    tops = {client.step(form)[0].top for form in forms} | {each.top for each in client.step(forms)}
    assert len({tuple(each.index for each in top) for top in tops}) == 1
    assert len(client.step(np.stack([photo(), photo(1)]))) == 2
    assert client.step([]) == []
    with pytest.raises(BadImage):
        client.step([b"no image"])
    assert client.status().counters.seen == 12


def test_samples_are_uploaded_as_crops_of_the_models_input(server, start, package):
    client = start(options={"format": "webp", "quality": 90})
    predictions = client.step([photo(i) for i in range(5)])
    assert client.drain(20)
    assert set(server.samples) == {prediction.sample for prediction in predictions}
    for content in server.samples.values():
        image = Image.open(io.BytesIO(content))
        assert (image.format, image.size) == ("WEBP", package.manifest.preprocessing.size)
    report = server.reports[-1]
    assert report["seen"] == 5
    assert set(report["excluded"]) == {"unreliable", "uninformative", "redundant", "budget", "spool"}
    assert client.status().counters.uploaded == 5
    assert client.status().waiting == 0


def test_what_is_not_worth_sending_is_counted_by_its_reason(server, start):
    client = start(options={"criteria": NONE})
    assert [each.excluded for each in client.step([photo(i) for i in range(4)])] == ["unreliable"] * 4
    assert client.status().counters.excluded["unreliable"] == 4
    assert client.status().share_uploaded == 0
    client.close()
    assert server.samples == {}


def test_without_a_teacher_nothing_is_uploaded(server, start):
    edge = start(recipe="ema")
    (prediction,) = edge.step(photo())
    assert (prediction.sample, prediction.excluded) == (None, None)
    assert edge.drain(5)
    assert until(lambda: server.reports)
    assert not server.samples
    edge.close()
    assert start(recipe="ema").step(photo())[0].sample is None  # It remembers.


def test_the_budget_is_kept(server, start):
    client = start(options={"bytes_per_hour": 3600.0, "burst_bytes": 10_000})
    for i in range(50):
        client.step([photo(i)])
        until(lambda: not client._keeper.queue.unfinished_tasks)
    assert client.drain(20)
    assert 0 < sum(map(len, server.samples.values())) <= 10_000 + 100
    assert client.status().counters.excluded["budget"] == 50 - len(server.samples)


def test_a_callback_gets_each_prediction(start):
    got = []
    client = start(on_prediction=got.append)
    assert client.step([photo(), photo(1)]) == got


def test_an_update_is_taken_into_use_between_two_steps(server, start, publisher):
    client = start(options={"top_k": 1000})
    parameters = publisher.publish(1)
    until(lambda: client.status().version == "a.1")
    assert client.step([photo()])[0].version == "a.1"
    assert answers(client, parameters, photo())
    assert until(lambda: client.status().applied_ms) > 0
    assert client.status().counters.updates == 1
    assert client.status().age_s >= 0
    parameters = publisher.publish(2, delta=True)
    until(lambda: client.status().version == "a.2")
    assert answers(client, parameters, photo())
    until(lambda: server.asked[-1].get("since") == "a.2")


def test_no_frame_is_lost_over_many_updates(start, publisher):
    client = start(options={"top_k": 1000})
    publisher.publish(1)
    seen, stop = [], threading.Event()

    def look() -> None:
        while not stop.is_set():
            seen.extend(client.step([photo()]))

    thread = threading.Thread(target=look)
    thread.start()
    expected = {None: publisher.package.source}
    for seed in range(1, 101):
        if seed > 1:
            expected[f"a.{seed}"] = publisher.publish(seed, delta=seed % 3 > 0)
        until(lambda seed=seed: client.status().version == f"a.{seed}")
    stop.set()
    thread.join()
    assert client.status().counters.updates == 100
    assert len(seen) == client.status().counters.seen
    versions = [prediction.version for prediction in seen]
    assert versions == sorted(versions, key=lambda version: int((version or "a.0").split(".")[1]))
    for prediction in seen:  # each was made by one version, whole
        if prediction.version in {"a.2", "a.50", "a.100"}:
            row = logits(publisher.package, expected[prediction.version], photo())[0].astype(np.float64)
            likely = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
            assert np.allclose([each.probability for each in prediction.top], np.sort(likely)[::-1], atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "counter", "words"),
    [
        ({"key": "another key"}, "rejected", "signature"),
        ({"edge": "another"}, "rejected", "for the edge another"),
        ({"fingerprint": "sha256:" + "0" * 64}, "rejected", "delete the edge's stream at the server"),
        ({"digest": "sha256:" + "0" * 64}, "rejected", "digest"),
        ({"probe": 0.5}, "rolled_back", "reference images"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_update_that_is_not_right_changes_nothing(start, server, publisher, changes, counter, words):
    client = start(uniform=lambda low, high: 0.0)
    publisher.publish(1)
    until(lambda: client.status().version == "a.1")
    publisher.publish(2, **changes)
    until(lambda: getattr(client.status().counters, counter))
    assert words in client.status().problem
    assert client.step([photo()])[0].version == "a.1"
    publisher.publish(3)
    until(lambda: client.status().version == "a.3")
    until(lambda: client.status().problem is None)
    until(lambda: server.reports[-1]["tag"] == "a.3")
    assert server.reports[-1]["rolled_back"] == client.status().counters.rolled_back


def test_an_update_of_before_is_not_taken_again(start, server, publisher):
    client = start(options={"top_k": 1000}, uniform=lambda low, high: 0.0)
    publisher.publish(9)
    until(lambda: client.status().version == "a.9")
    old = server.offer
    parameters = publisher.publish(10)
    until(lambda: client.status().version == "a.10")
    until((client._folder.path / "update").exists)
    server.publish("again", *old[1:])
    until(lambda: client.status().counters.rejected)
    assert "version a.9 is older than a.10" in client.status().problem
    assert answers(client, parameters, photo())
    client.close()
    again = start(options={"top_k": 1000}, uniform=lambda low, high: 0.0)
    until(lambda: again.status().counters.rejected > client.status().counters.rejected)
    assert answers(again, parameters, photo())
    server.publish("b.1", *_of_another_stream(publisher))
    until(lambda: again.status().version == "b.1")


def _of_another_stream(publisher: Publisher) -> tuple[bytes, str]:
    publisher.publish(11, tag="b.1")
    return publisher.server.offer[1:]


def test_an_update_that_is_cut_off_or_unsigned_changes_nothing(start, server, publisher):
    client = start(uniform=lambda low, high: 0.0)
    publisher.publish(1)
    tag, body, signature = server.offer
    for broken, signed in ((body[:-20], signature), (body, ""), (b"", sign(publisher.key, b"")), (b"\xff" * 99, "x")):
        rejected = client.status().counters.rejected
        server.publish("a.0", broken, signed)
        until(lambda before=rejected: client.status().counters.rejected > before)
    assert client.status().version is None
    server.publish(tag, body, signature)
    until(lambda: client.status().version == "a.1")


@pytest.mark.parametrize(("rise", "passes"), [(0.0, 4), (0.15, 8)])
def test_a_doubtful_update_is_tried_on_more_images(start, package, monkeypatch, rise, passes):
    client = start()
    runtime = client._in_use.network
    entropies = [client.step([photo(i)])[0].entropy for i in range(8)]
    client._recent = [
        (crop, before - rise * math.log(7)) for (crop, _), before in zip(client._recent, entropies, strict=True)
    ]
    client._updater.recent = lambda: client._recent
    run, seen = Runtime.logits, []
    monkeypatch.setattr(Runtime, "logits", lambda self, batch: seen.append(len(batch)) or run(self, batch))
    client._updater._compare(runtime)
    assert seen == [1] * passes


def test_a_delta_to_a_version_that_is_not_held_makes_the_edge_ask_for_the_whole(start, server, publisher):
    client = start(uniform=lambda low, high: 0.0)
    publisher.publish(1)
    until(lambda: client.status().version == "a.1")
    publisher.tag = "a.0"  # what the next one builds on, as a confused server has it
    publisher.publish(2, delta=True)
    until(lambda: any("since" not in asked for asked in server.asked[2:]))
    assert client.status().version == "a.1"
    publisher.publish(3)
    until(lambda: client.status().version == "a.3")


def test_other_weights_under_the_same_name_are_fetched_and_run(start, server, publisher, retrained_package, tmp_path):
    client = start(options={"top_k": 1000}, uniform=lambda low, high: 0.0)
    publisher.publish(1)
    until(lambda: client.status().version == "a.1")
    client.step([photo()])
    server.package = retrained_package.folder  # the server was started with another checkpoint
    successor = Publisher(server, retrained_package)
    parameters = successor.publish(2, probe=0.5)
    until(lambda: client.status().counters.rolled_back)
    assert client.step([photo()])[0].version == "a.1"  # until an update of the new weights is good
    assert client.status().fingerprint == publisher.package.manifest.fingerprint
    parameters = successor.publish(3)
    until(lambda: client.status().version == "a.3")
    assert answers(client, parameters, photo())
    assert client.status().fingerprint == retrained_package.manifest.fingerprint
    until(lambda: client.status().problem is None)
    parameters = successor.publish(4, delta=True)
    until(lambda: client.status().version == "a.4")
    until(lambda: Folder(tmp_path / "edge").update()[0].partition(b"\n")[0].count(b'"a.4"'))
    client.close()
    server.away = True
    again = start(options={"top_k": 1000, "first_contact_s": 0.0})
    assert answers(again, parameters, photo())


def test_other_weights_that_cannot_be_fetched_yet_are_told(start, server, publisher, retrained_package, monkeypatch):
    client = start(uniform=lambda low, high: 0.0)
    whole, file = server.package, Cloud.file
    monkeypatch.setattr(Cloud, "file", lambda *_: problem(503, "the package is being made"))
    server.package = retrained_package.folder
    Publisher(server, retrained_package).publish(1)
    until(lambda: "cannot be fetched now" in (client.status().problem or ""))
    assert retrained_package.manifest.fingerprint in client.status().problem
    assert whole.name in client.status().problem
    assert client.step([photo()])[0].version is None
    monkeypatch.setattr(Cloud, "file", file)
    until(lambda: client.status().version == "a.1")
    assert client.package.manifest.fingerprint == retrained_package.manifest.fingerprint


def test_an_update_that_makes_the_edge_unsure_is_rolled_back(start, publisher, package):
    client = start(options={"top_k": 1})
    sure = publisher.parameters(1)
    sure["weight"] = sure["weight"] * 1  # a network that is as sure as it was
    publisher.publish(1)
    until(lambda: client.status().version == "a.1")
    for i in range(20):
        client.step([photo(i)])
    client._recent.extend([(crop, 0.0) for crop, _ in client._recent.copy()])  # as if it had been certain
    publisher.publish(2)
    until(lambda: client.status().counters.rolled_back)
    assert "mean entropy" in client.status().problem
    assert client.status().version == "a.1"
    assert client._updater.held.tag == "a.2"  # not fetched again


def test_a_start_without_network_is_adapted(start, server, publisher):
    client = start()
    parameters = publisher.publish(1)
    until(lambda: client.status().version == "a.1")
    client.step([photo(i) for i in range(3)])
    before = client.status()
    client.close()
    server.away = True
    again = start(options={"top_k": 1000, "first_contact_s": 0.0})
    assert again.step([photo()])[0].version == "a.1"
    assert answers(again, parameters, photo())
    assert again.status().counters.seen == before.counters.seen + 2
    assert again.status().counters.updates == 1
    assert again.status().last_contact_at is None
    assert again._selector.images == before.counters.seen + 2
    server.away = False
    publisher.publish(2, delta=True)  # which builds on what was kept
    again._updater.backoff.uniform = lambda low, high: 0.0
    until(lambda: again.status().version == "a.2", 70)


@pytest.mark.parametrize("damage", [b"", b"rubbish", b"hmac-sha256=00\nrubbish"])
def test_a_damaged_update_in_the_folder_is_passed_over(start, publisher, tmp_path, damage):
    client = start()
    publisher.publish(1)
    until((tmp_path / "edge/update").exists)
    client.close()
    (tmp_path / "edge/update").write_bytes(damage)
    again = start()
    assert again.step([photo()])[0].version in {None, "a.1"}
    until(lambda: again.status().version == "a.1")  # fetched again


def test_a_damaged_model_in_the_folder_is_fetched_again(start, package, tmp_path):
    start().close()
    (model,) = (tmp_path / "edge/packages").rglob("model.onnx")
    model.write_bytes(b"rubbish")
    client = start(options={"top_k": 1000})
    assert answers(client, package.source, photo())


def test_damaged_notes_are_begun_anew(start, server, tmp_path):
    client = start()
    client.step([photo()])
    client.close()
    for name in ("state.json", "status.json"):
        (tmp_path / "edge" / name).write_bytes(
            b'{"counters": {"seen": "many", "excluded": 3}, "selector": 1, "budget": []}'
        )
    server.away = True  # or the sample that waits might be sent, and counted, meanwhile
    assert start().status().counters == Counters()


def test_a_new_edge_without_a_server_says_so(start, server):
    server.away = True
    pauses = []
    now = [0.0]

    def sleep(pause_s: float) -> None:
        pauses.append(pause_s)
        now[0] += pause_s

    with pytest.raises(ConnectionFailed, match="no model yet"):
        start(clock=Clock(time.time, lambda: now[0]), sleep=sleep, uniform=lambda low, high: high)
    assert pauses == [1, 2, 4, 8, 16]
    server.away = False
    assert start().step([photo()])


def test_a_new_edge_that_is_refused_says_so_at_once(start, server):
    server.edges["gate"] = {"id": "gate", "key": "another"}
    with pytest.raises(Unwelcome, match="another key"):
        start()


def test_an_edge_that_is_refused_later_goes_on_predicting(start, server):
    client = start()
    server.instead.extend([problem(410, "deleted")] * 3)
    client.step([photo()])
    until(lambda: client._membership.halted)
    assert "deleted" in client.status().problem
    assert client.step([photo()])
    assert not client.drain(5)


def test_a_folder_is_for_one_edge_and_one_process(start):
    client = start()
    with pytest.raises(InvalidArgument, match="in use"):
        start()
    client.close()
    with pytest.raises(InvalidArgument, match="'gate'"):
        start(edge="other")
    with pytest.raises(InvalidArgument, match="key"):
        start(key=KEY)
    with pytest.raises(InvalidArgument, match="recipe 'cema'"):
        start(recipe="tent")
    start().close()


@pytest.mark.parametrize(
    "wrong", [{"quality": 0}, {"batch": 0}, {"format": "png"}, {"precision": "int8"}, {"bytes_per_hour": math.nan}]
)
def test_an_option_that_is_wrong_is_named(wrong):
    with pytest.raises(InvalidArgument, match=next(iter(wrong))):
        Options(**wrong)


@pytest.mark.parametrize("method", [AlphaBN(0.3), EMA(0.1, 0.5)], ids=["alpha_bn", "ema"])
def test_the_edge_adapts_by_itself_too(start, publisher, method):
    client = start(options={"local": method, "top_k": 1000})
    plain = start("plain", "plain", options={"top_k": 1000})
    images = [photo(i) for i in range(4)]
    client.step(images)  # ema learns from these first
    mine, theirs = client.step(images), plain.step(images)
    assert any(a.top[0].probability != b.top[0].probability for a, b in zip(mine, theirs, strict=True))
    publisher.publish(1)
    running = client._in_use.network.running
    until(lambda: client.status().version == "a.1")
    assert client._in_use.network.running is running
    assert client.step(images)[0].version == "a.1"


def test_what_the_edge_has_seen_is_kept_over_a_restart(start, publisher, tmp_path, convolutions_package):
    client = start(options={"local": EMA(0.1, 0.5)})
    client.step([photo(i) for i in range(4)])
    publisher.publish(1)
    until(lambda: client.status().version == "a.1")
    client.step([photo(9)])
    running = client._in_use.statistics
    client.close()
    again = start(options={"local": EMA(0.1, 0.5)})
    assert again.status().version == "a.1"
    for name in ("mean", "var"):
        np.testing.assert_array_equal(getattr(again._in_use.statistics, name), getattr(running, name))
    again.close()
    content = (tmp_path / "edge/statistics").read_bytes()
    assert len(content) < 2**20
    for damaged in (b"", content[:-40], b"rubbish", running.packed(convolutions_package)[:200]):
        (tmp_path / "edge/statistics").write_bytes(damaged)
        anew = start(options={"local": EMA(0.1, 0.5)})
        assert not np.array_equal(anew._in_use.statistics.mean, running.mean)
        assert anew.step([photo()])
        anew.close()


def test_what_the_edge_has_seen_is_written_now_and_then(start, tmp_path):
    client = start(options={"local": EMA()})
    path = tmp_path / "edge/statistics"
    for _ in range(3):
        client.step([photo()])
        client._write()
    assert not path.exists()
    client._diary.statistics_at -= 61
    client._write()
    first = path.read_bytes()
    client.step([photo()])
    client._write()
    assert path.read_bytes() == first


def test_a_full_disk_ends_nothing(start, tmp_path, monkeypatch):
    client = start()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Folder, "_write", full)
    client._diary.written_at = -math.inf
    assert client.step([photo()])
    until(lambda: client._diary.written_at > 0)
    assert client.step([photo()])


def test_a_clock_that_jumps_ends_nothing(start, server):
    now = [1_800_000_000.0]
    client = start(clock=Clock(lambda: now[0], time.monotonic))
    for jump in (0, -1e9, 2e9, -1e5):
        now[0] += jump
        assert client.step([photo()])
    assert client.status().counters.seen == 4


def test_an_edge_that_is_killed_goes_on_where_it_was(start, server, publisher, package, tmp_path):
    client = start(edge="killed")
    client.close()
    server.instead.extend([problem(503)] * 10_000)  # what is uploaded waits
    program = (
        "import sys, numpy as np\n"
        "from normstream.clients.edge.client import EdgeClient, Options\n"
        "from normstream.clients.edge.selection import Criteria\n"
        "options = Options(criteria=Criteria(unreliable=100, uninformative=0, redundant=2), linger_s=0)\n"
        "client = EdgeClient(sys.argv[1], 'killed', sys.argv[2], options=options)\n"
        "while True:\n"
        "    prediction, = client.step([np.random.default_rng().integers(0, 256, (40, 50, 3), dtype=np.uint8)])\n"
        "    print(prediction.version, len(client._spool), flush=True)\n"
    )
    publisher.edge = "killed"
    command = [sys.executable, "-c", program, server.url, tmp_path / "edge"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        publisher.publish(1)
        version, waiting = "None", 0
        while version == "None" or waiting < 20:
            version, waiting = process.stdout.readline().split()
            waiting = int(waiting)
        until((tmp_path / "edge/update").exists)
        process.send_signal(signal.SIGKILL)
    server.away = True
    again = start(edge="killed")
    assert again.step([photo()])[0].version == "a.1"
    assert again.status().waiting >= waiting


def test_the_status_is_on_the_disk_for_others(start, tmp_path):
    client = start()
    client.step([photo()])
    folder = Folder(tmp_path / "edge")
    assert folder.in_use()
    client.close()
    assert not folder.in_use()
    status = Status.kept(folder)
    assert status.counters.seen == 1
    assert (status.edge, status.model) == ("gate", client.package.manifest.model)
    assert set(status.latency_ms) == {"p50", "p95"}
    assert Status.kept(Folder(tmp_path / "none")) is None
    assert json.dumps(status.plain())
    assert asdict(status)


def test_closing_twice_and_while_a_question_is_open_is_quick(start, server):
    client = start(options={"wait_s": 60.0})
    until(lambda: server.asked)
    began = time.monotonic()
    client.close()
    client.close()
    assert time.monotonic() - began < 5
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("normstream-")]


def test_the_packages_own_errors_do_not_hide_the_key(start, tmp_path, caplog):
    client = start(key=KEY)
    client.close()
    assert KEY not in caplog.text
    assert KEY not in repr(client._membership.identity)
    assert os.environ.get("NORMSTREAM_EDGE_KEY") is None
    assert KEY in Path(tmp_path / "edge/edge.json").read_text()


def test_a_full_spool_drops_samples_and_nothing_else(start, server):
    client = start(options={"spool_bytes": 2**16})
    server.away = True
    for i in range(60):
        assert client.step([photo(i)])
    until(lambda: not client._keeper.queue.unfinished_tasks)
    until(lambda: client.status().counters.excluded["spool"] >= 60 - 2**16 // 4096)
    assert client.status().waiting_bytes <= 2**16
    assert client.status().waiting + client.status().counters.excluded["spool"] == 60
