"""An edge client: from its first contact to its end."""

import io
import json
import math
import os
import stat
import threading
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from cloud import problem
from PIL import Image
from surroundings import KEY, NONE, answers, photo, until

from normstream.clients.edge.clock import Clock
from normstream.clients.edge.errors import BadImage, BadPackage
from normstream.clients.edge.folder import Folder
from normstream.clients.edge.in_use import network
from normstream.clients.edge.link import Unwelcome
from normstream.clients.edge.local import EMA, AlphaBN
from normstream.clients.edge.local_runtime import EMARuntime
from normstream.clients.edge.options import Options
from normstream.clients.edge.runtime import Runtime
from normstream.clients.edge.status import Status
from normstream.clients.errors import ConnectionFailed, InvalidArgument


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
    assert client.status().share_uploaded == 1
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
    assert edge.status().plain()["share_uploaded"] == 0
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
    "wrong",
    [
        {"quality": 0},
        {"batch": 0},
        {"format": "png"},
        {"precision": "int8"},
        {"bytes_per_hour": math.nan},
        {"local": "ema"},
    ],
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
    assert (client.status().counters.taken_in >= len(images)) == isinstance(method, EMA)
    assert plain.status().counters.taken_in == 0
    assert any(a.top[0].probability != b.top[0].probability for a, b in zip(mine, theirs, strict=True))
    publisher.publish(1)
    running = client._in_use.statistics
    until(lambda: client.status().version == "a.1")
    assert client._in_use.statistics is running
    assert client.step(images)[0].version == "a.1"


def test_left_alone_an_edge_adapts_by_itself_where_the_model_has_batch_norms(convolutions_package, tokens_package):
    options = Options()
    assert isinstance(network(convolutions_package, options, Clock()), EMARuntime)
    assert isinstance(network(tokens_package, options, Clock()), Runtime)
    assert isinstance(network(convolutions_package, Options(local=None), Clock()), Runtime)
    with pytest.raises(BadPackage, match="no batch norms"):
        network(tokens_package, Options(local=EMA()), Clock())


def test_an_edge_with_no_time_to_spare_predicts_by_a_fused_network(start):
    client = start(options={"local": EMA(share=1e-6)})

    def fused():
        before = client._in_use.statistics
        client.step([photo()])
        return client._in_use.statistics is before

    until(lambda: fused() and not client._in_use.lags)


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
