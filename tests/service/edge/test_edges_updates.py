"""The updates of edges: each version arrives, whole or as a difference, and can be waited for."""

import io
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from edges import BATCH, KEY, SLOW_S, EdgeApi, crop, crops, digest, joined, learnt, opened
from labelling import label_images
from servers import Api, Live, check_problem, until

from normstream.adaptation import ModelSpec
from normstream.clients.edge.errors import BadSignature
from normstream.clients.edge.package import Package
from normstream.clients.edge.runtime import Runtime
from normstream.clients.edge.update import Held, Update, decode


def test_updates_bring_what_the_stream_has_learnt(api: Api, edge: EdgeApi) -> None:
    header, source, _ = opened(edge.ask())
    model = api.get("/v1/models/tiny").json()
    assert header["format"] == "normstream.update/1"
    assert (header["edge"], header["model"], header["fingerprint"]) == (edge.id, "tiny", model["fingerprint"])
    assert (header["codec"], header["base"], header["precision"]) == ("full", None, "float16")
    channels = sum(layer["channels"] for layer in model["norm_layers"])
    assert header["tensors"] == dict.fromkeys(("weight", "bias", "mean", "var"), channels)
    assert not any(source), "nothing was learnt yet"
    assert edge.ask(since=header["tag"]).status_code == 204
    edge.upload(crops(*"abcd"))
    learnt(edge, BATCH)
    after, offsets, probe = opened(edge.ask(since=header["tag"]))
    assert after["tag"] == edge.tag != header["tag"]
    whole = joined(source, offsets) if after["codec"] == "delta" else offsets
    assert digest(whole) == after["digest"]
    exact, offsets, _ = opened(edge.ask(precision="float32"))
    assert (exact["precision"], exact["tag"], len(offsets)) == ("float32", after["tag"], 2 * len(whole))
    near = np.frombuffer(whole, "<f2").astype("<f4")
    np.testing.assert_allclose(near, np.frombuffer(offsets, "<f4"), atol=2e-3)
    check_probe(api, edge, probe)


def check_probe(api: Api, edge: EdgeApi, probe: np.ndarray) -> None:
    """The probe's logits are those of the stream, for the package's reference images."""
    settings = api.get("/v1/models/tiny").json()["preprocessing"]
    pixels = np.load(io.BytesIO(api.get("/v1/models/tiny/package/reference.npy").content))
    images = (pixels.astype(np.float32) / 255 - settings["mean"]) / settings["std"]
    images = np.ascontiguousarray(images.transpose(0, 3, 1, 2).astype(np.float32))
    np.testing.assert_allclose(api.logits(edge.stream, images), probe, atol=1e-2)


def test_a_later_version_is_sent_as_a_difference(api: Api, edge: EdgeApi) -> None:
    edge.upload(crops(*"abcd"))
    learnt(edge, BATCH)
    first, base, _ = opened(edge.ask(precision="float32"))
    edge.upload(crops(*"efgh"))
    learnt(edge, 2 * BATCH)
    second, difference, _ = opened(edge.ask(precision="float32", since=first["tag"]))
    assert (second["codec"], second["base"]) == ("delta", first["tag"])
    whole, offsets, _ = opened(edge.ask(precision="float32"))
    assert whole["codec"] == "full"
    assert joined(base, difference) == offsets
    assert whole["digest"] == second["digest"]


def test_what_is_not_known_is_answered_whole(api: Api, edge: EdgeApi) -> None:
    for since in ("ffffffff.1", "nonsense", "a" * 128, "", "\u00e9"):
        header, _, _ = opened(edge.ask(since=since))
        assert (header["codec"], header["tag"]) == ("full", edge.tag)
    assert edge.show()["acknowledged"] == "ffffffff.1"
    assert edge.show()["versions_behind"] is None


def test_a_known_etag_is_not_modified(api: Api, edge: EdgeApi) -> None:
    etag = edge.ask().headers["ETag"]
    path = f"/v1/edges/{edge.id}/affine"
    answer = api.get(path, headers={**edge.headers, "If-None-Match": etag})
    assert (answer.status_code, answer.headers["ETag"], answer.content) == (304, etag, b"")
    assert api.get(path, headers={**edge.headers, "If-None-Match": '"other"'}).status_code == 200


@pytest.mark.parametrize(
    "query",
    [
        {"precision": "float64"},
        {"precision": ""},
        {"wait": -1},
        {"wait": 61},
        {"wait": "nan"},
        {"wait": "inf"},
        {"wait": "soon"},
        {"since": "a" * 129},
    ],
    ids=str,
)
def test_a_bad_query_is_refused(edge: EdgeApi, query: dict[str, Any]) -> None:
    check_problem(edge.ask(**query), 422, f"query.{next(iter(query))}")


def test_an_edge_may_wait_for_the_next_version(api: Api, edge: EdgeApi) -> None:
    tag = edge.tag
    start = time.monotonic()
    assert edge.ask(since=tag, wait=0.5).status_code == 204
    assert time.monotonic() - start >= 0.5
    answers: list[httpx.Response] = []
    waiting = threading.Thread(target=lambda: answers.append(edge.ask(since=tag, wait=60)))
    waiting.start()
    time.sleep(0.3)
    assert api.post(f"/v1/streams/{edge.stream}/reset").status_code == 200
    waiting.join(SLOW_S)
    header, _, _ = opened(answers[0])
    assert header["tag"] == edge.tag != tag


def test_of_an_edge_one_question_waits(api: Api, edge: EdgeApi) -> None:
    """Each holds a connection to the store: one edge's must not take those of all others."""
    tag = edge.tag
    with ThreadPoolExecutor(8) as threads:
        asked = [threads.submit(edge.ask, since=tag, wait=60) for _ in range(8)]
        until(lambda: sum(each.done() for each in asked) == 7, SLOW_S)
        assert api.post(f"/v1/streams/{edge.stream}/reset").status_code == 200
    assert sorted(each.result().status_code for each in asked) == [200] + [204] * 7


def test_a_waiting_edge_is_sent_away_when_the_server_drains(
    serve: Callable[..., Live], tiny_models: tuple[ModelSpec, ModelSpec]
) -> None:
    server = serve(models=tiny_models)
    with Api(server.url, timeout=SLOW_S) as api:
        edge = EdgeApi(api)
        tag, answers = edge.tag, []
        waiting = threading.Thread(target=lambda: answers.append(edge.ask(since=tag, wait=60)))
        waiting.start()
        time.sleep(0.3)
        server.terminate()
        waiting.join(20)
        check_problem(answers[0], 503, "shutting down")


def test_reset_and_restore_are_versions_too(api: Api, edge: EdgeApi) -> None:
    edge.upload(crops(*"abcd"))
    learnt(edge, BATCH)
    tag = edge.tag
    taught_, offsets, _ = opened(edge.ask(precision="float32"))
    snapshot = api.post(f"/v1/streams/{edge.stream}/snapshots").json()["id"]
    edge.upload(crops("w"))
    assert api.post(f"/v1/streams/{edge.stream}/reset").json()["step"] == 0
    shown = edge.show()
    assert shown["samples"] == {"received": 5, "used": 4, "dropped": 1, "pending": 0}, "nothing of before stays"
    reset, source, _ = opened(edge.ask(precision="float32"))
    assert reset["tag"] != tag
    assert not any(source)
    assert api.post(f"/v1/streams/{edge.stream}/restore", json={"snapshot": snapshot}).json()["step"] == 1
    restored, again, _ = opened(edge.ask(precision="float32"))
    assert restored["tag"] not in (tag, reset["tag"])
    assert restored["digest"] == taught_["digest"]
    assert again == offsets


def test_versions_and_staleness_are_told(api: Api, edge: EdgeApi) -> None:
    header, _, _ = opened(edge.ask())
    assert (edge.show()["acknowledged"], edge.show()["versions_behind"]) == (None, None)
    edge.ask(since=header["tag"])
    assert (edge.show()["versions_behind"], edge.show()["staleness_s"]) == (0, 0.0)
    for behind in (1, 2):
        api.post(f"/v1/streams/{edge.stream}/reset")
        time.sleep(0.05)
        shown = edge.show()
        assert shown["versions_behind"] == behind
        assert 0.05 <= shown["staleness_s"] < SLOW_S
    header, _, _ = opened(edge.ask(since=header["tag"]))
    edge.upload(report={"tag": header["tag"]})
    assert (edge.show()["versions_behind"], edge.show()["staleness_s"]) == (0, 0.0)
    assert edge.show()["bytes_down"] > 0


def test_labels_that_are_counted_are_no_new_version(api: Api, edge: EdgeApi) -> None:
    header, _, _ = opened(edge.ask())
    version = api.show(edge.stream)["version"]
    for number in range(3):
        label_images(api, edge.stream, [crop(number)], [{"class": 0}])
    assert api.show(edge.stream)["version"] == version + 3
    assert edge.ask(since=header["tag"]).status_code == 204
    shown = edge.show()
    assert (shown["tag"], shown["versions_behind"], shown["staleness_s"]) == (header["tag"], 0, 0.0)
    api.post(f"/v1/streams/{edge.stream}/reset")
    reset, _, _ = opened(edge.ask(since=header["tag"]))
    label_images(api, edge.stream, [crop(3)], [{"class": 0}])
    age_s = time.time() - reset["created_at"]
    shown = edge.show()
    assert (shown["tag"], shown["versions_behind"]) == (reset["tag"], 1)
    assert shown["staleness_s"] >= age_s, "labels make it no younger"


def test_the_edges_own_reader_runs_what_comes(api: Api, edge: EdgeApi, tmp_path: Path) -> None:
    """Package, whole version and difference, with the client's code and ONNX Runtime."""
    package = Package.fetch(api, "tiny", tmp_path)

    def read(answer: httpx.Response, held: Held | None = None) -> Update:
        assert answer.status_code == 200, answer.text
        update = decode(answer.content, answer.headers["Normstream-Signature"], KEY, package, held)
        Runtime(package, update.parameters).probe(update.probe)
        return update

    update = read(edge.ask())
    for first in range(0, 12, BATCH):
        edge.upload([(f"{number}", crop(number)) for number in range(first, first + BATCH)])
        learnt(edge, first + BATCH)
        by_difference = read(edge.ask(since=update.tag), update.held)
        update = read(edge.ask())
        assert by_difference.tag == update.tag
        for name, values in update.parameters.items():
            np.testing.assert_array_equal(values, by_difference.parameters[name])
    answer = edge.ask()
    with pytest.raises(BadSignature):
        decode(answer.content, answer.headers["Normstream-Signature"], "x" * 40, package)
