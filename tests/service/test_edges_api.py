"""What the service promises of edges, over real connections."""

import hashlib
import io
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from edges import BATCH, KEY, EdgeApi, crop, crops, digest, joined, opened, taught
from PIL import Image
from servers import CLASSES, TINY, Api, Live, check_problem, live, new_id, tensors, until

from normstream.adaptation import HostingError, ModelSpec
from normstream.clients.edge.errors import BadSignature
from normstream.clients.edge.package import Package
from normstream.clients.edge.runtime import Runtime
from normstream.clients.edge.update import Held, Update, decode
from normstream.service import packages
from normstream.service.settings import Settings

SLOW_S = 60.0  # for what takes a moment on an idle machine


@pytest.fixture(scope="module")
def cloud(redis_url: str, tiny_models: tuple[ModelSpec, ModelSpec], kept: Path) -> Iterator[Live]:
    """A server that hosts a student and its teacher."""
    with live(Settings(models=tiny_models, redis_url=redis_url, data=kept, max_images=8)) as running:
        yield running


@pytest.fixture
def api(cloud: Live) -> Iterator[Api]:
    with Api(cloud.url, timeout=SLOW_S) as client:
        yield client


@pytest.fixture
def edge(api: Api) -> EdgeApi:
    """An edge whose stream learns when a batch is full."""
    made = EdgeApi(api)
    assert made.registered.status_code == 201, made.registered.text
    return made


def learnt(edge: EdgeApi, samples: int) -> dict[str, Any]:
    """The edge, when so many samples have been learnt from."""
    return until(lambda: (shown := edge.show())["samples"]["used"] >= samples and shown, SLOW_S)


# Registration


def test_an_edge_is_registered_found_shown_and_listed(api: Api) -> None:
    given = {"id": new_id("e"), "key": KEY, "model": "tiny", "recipe": taught()}
    made = api.post("/v1/edges", json=given)
    assert made.status_code == 201, made.text
    told = made.json()
    assert (told["id"], told["key"], told["model"], told["teacher"]) == (given["id"], KEY, "tiny", "other")
    assert (told["stream"], told["group"]) == (f"edge-{given['id']}", None)
    assert told["package"] == "/v1/models/tiny/package"
    stream = api.show(told["stream"])
    assert told["tag"] == f"{stream['generation']}.{stream['version']}"
    assert stream["recipe"] == told["recipe"]
    again = api.post("/v1/edges", json=given)
    assert (again.status_code, again.json()) == (200, told)
    shown = api.get(f"/v1/edges/{given['id']}").json()
    assert shown.keys() >= {"tag", "acknowledged", "versions_behind", "staleness_s", "samples", "uplink_saved"}
    assert (shown["tag"], shown["acknowledged"], shown["last_seen"]) == (told["tag"], None, None)
    page = api.get("/v1/edges", params={"after": given["id"][:-1], "limit": 1}).json()
    assert page["edges"] == [shown]


def test_id_and_key_are_made_up_when_left_out(api: Api) -> None:
    first, second = (api.post("/v1/edges", json={"recipe": "ema"}).json() for _ in range(2))
    assert first["id"] != second["id"]
    assert first["key"] != second["key"]
    assert len(first["key"]) >= 32
    assert (first["model"], first["teacher"]) == ("tiny", None)


@pytest.mark.parametrize(
    "other",
    [{"key": "x" * 40}, {"model": "other"}, {"recipe": taught(batch=5)}, {"group": "fog"}, {"key": None}],
    ids=lambda other: next(iter(other)),
)
def test_an_id_is_not_given_twice(api: Api, edge: EdgeApi, other: dict[str, Any]) -> None:
    given = {"id": edge.id, "key": KEY, "model": "tiny", "recipe": taught(), **other}
    answer = api.post("/v1/edges", json=given)
    check_problem(answer, 409, "another id")
    assert KEY not in answer.text
    assert edge.ask().status_code == 200


def test_a_stream_of_another_recipe_is_not_taken_over(api: Api) -> None:
    name = new_id("e")
    api.make(f"edge-{name}", "ema")
    check_problem(EdgeApi(api, name).registered, 409, f"edge-{name}")
    check_problem(api.get(f"/v1/edges/{name}"), 404)


@pytest.mark.parametrize(
    ("fields", "status", "words"),
    [
        ({"recipe": taught(teacher="resnet101")}, 422, ("body.recipe", "host 'resnet101' too")),
        ({"recipe": "cema"}, 422, ("'tf_efficientnet_lite2'", "update.teacher")),
        ({"recipe": taught(batch=0)}, 422, ("batch",)),
        ({"recipe": "none"}, 422, ("unknown recipe",)),
        ({"recipe": "ln_align"}, 422, ("body.recipe", "layer or group")),
        ({"model": "none"}, 404, ("'none'", "tiny")),
        ({"model": "é\u0000"}, 404, ()),
        ({"id": "a/b"}, 422, ("body.id",)),
        ({"id": ".a"}, 422, ("body.id",)),
        ({"id": "a" * 101}, 422, ("body.id",)),
        ({"group": "a b"}, 422, ("body.group",)),
        ({"secret": 1}, 422, ("body.secret",)),
    ],
)
def test_what_cannot_be_registered(api: Api, fields: dict[str, Any], status: int, words: tuple[str, ...]) -> None:
    name = new_id("e")
    given = {"id": name, "key": KEY, "model": "tiny", "recipe": "ema", **fields}
    check_problem(api.post("/v1/edges", json=given), status, *words)
    check_problem(api.get(f"/v1/streams/edge-{name}"), 404)


@pytest.mark.parametrize("key", ["short", "k" * 129, "k" * 40 + "!", "", 5, ["k" * 40]])
def test_a_key_that_is_refused_is_not_repeated(api: Api, key: Any) -> None:
    answer = api.post("/v1/edges", json={"key": key, "recipe": "ema"})
    check_problem(answer, 422, "body.key")
    assert repr(key) not in answer.text


def test_a_teacher_of_other_classes_is_refused(
    serve: Callable[..., Live], tiny_models: tuple[ModelSpec, ModelSpec], tmp_path: Path
) -> None:
    import timm
    from safetensors.torch import save_file

    save_file(timm.create_model(TINY, num_classes=CLASSES + 1).state_dict(), tmp_path / "more.safetensors")
    more = ModelSpec(name="other", architecture=TINY, checkpoint=tmp_path / "more.safetensors", classes=CLASSES + 1)
    with Api(serve(models=(tiny_models[0], more)).url, timeout=SLOW_S) as api:
        check_problem(EdgeApi(api).registered, 422, "8 classes", "7")


def test_a_model_that_cannot_be_exported_is_refused_and_tried_once(
    serve: Callable[..., Live], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def refuse(*_: Any) -> Path:
        tried.append(1)
        raise HostingError("operator aten::odd of layer 'neck' has no ONNX counterpart")

    monkeypatch.setattr(packages, "_exported", refuse)
    with Api(serve().url, timeout=SLOW_S) as api:
        name = new_id("e")
        for _ in range(2):
            check_problem(EdgeApi(api, name, recipe="ema").registered, 422, "aten::odd", "'neck'")
        check_problem(api.get("/v1/models/tiny/package"), 422, "aten::odd")
        check_problem(api.get(f"/v1/streams/edge-{name}"), 404)
    assert len(tried) == 1


def test_a_package_that_cannot_be_written_is_told(serve: Callable[..., Live], tmp_path: Path) -> None:
    (tmp_path / "packages").write_text("in the way")
    with Api(serve(data=tmp_path).url, timeout=SLOW_S) as api:
        answer = EdgeApi(api, recipe="ema").registered
        check_problem(answer, 503, "cannot be written")
        assert answer.headers["Retry-After"]


# Keys


def own_calls(api: Api, edge_id: str, headers: dict[str, str]) -> list[httpx.Response]:
    report = [("report", (None, b"{}"))]
    return [
        api.post(f"/v1/edges/{edge_id}/samples", files=report, headers=headers),
        api.get(f"/v1/edges/{edge_id}/affine", headers=headers),
    ]


def test_an_edges_calls_need_its_key(api: Api, edge: EdgeApi) -> None:
    for headers in ({}, {"Authorization": f"Basic {KEY}"}, {"Authorization": "Bearer"}):
        for answer in own_calls(api, edge.id, headers):
            check_problem(answer, 401, "Authorization: Bearer KEY")
            assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    other = EdgeApi(api, key="o" * 40)
    for headers in ({"Authorization": "Bearer wrong"}, other.headers):
        for answer in own_calls(api, edge.id, headers):
            check_problem(answer, 403, "another key")
            assert KEY not in answer.text
    for answer in own_calls(api, "no-such", edge.headers):
        check_problem(answer, 404, "no-such", "POST /v1/edges")


def test_the_key_is_told_once_and_stands_nowhere_else(
    api: Api, edge: EdgeApi, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    edge.upload(crops(*"abcd"), {"seen": 9, "uploaded": 4})
    learnt(edge, BATCH)
    edge.ask()
    pages = [f"/v1/edges/{edge.id}", "/v1/edges", f"/v1/streams/{edge.stream}", "/v1/streams"]
    texts = [api.get(page).text for page in pages]
    api.delete(f"/v1/edges/{edge.id}")
    texts.append(api.get(f"/v1/streams/{edge.stream}/events", headers={"Last-Event-ID": "0-0"}).text)
    assert "taught" in texts[-1]
    for text in [*texts, caplog.text]:
        assert KEY not in text


# Samples


def test_samples_are_taken_in_learnt_from_and_counted_once(api: Api, edge: EdgeApi) -> None:
    first = edge.upload(crops(*"abc"), {"taken_at": {"a": 1.5e9}, "seen": 10, "uploaded": 3})
    assert (first.status_code, first.json()) == (202, {"accepted": 3, "duplicates": 0, "pending": 3})
    again = edge.upload(crops(*"abc"))
    assert (again.status_code, again.json()) == (202, {"accepted": 0, "duplicates": 3, "pending": 3})
    assert edge.upload(crops("d", "d")).json()["duplicates"] == 1
    shown = learnt(edge, BATCH)
    assert shown["samples"] == {"received": 4, "used": 4, "dropped": 0, "pending": 0}
    assert (shown["bytes_up"] > 0, shown["report"]["seen"], shown["uplink_saved"]) == (True, 10, 0.7)
    assert edge.upload(crops(*"abcd")).json() == {"accepted": 0, "duplicates": 4, "pending": 0}
    assert api.show(edge.stream)["step"] == 1


def test_a_report_may_come_alone(edge: EdgeApi) -> None:
    report = {
        "tag": edge.tag,
        "seen": 100,
        "excluded": {"unreliable": 40, "redundant": 10},
        "uploaded": 50,
        "rolled_back": 1,
        "latency_ms": 12.5,
    }
    answer = edge.upload(report=report)
    assert (answer.status_code, answer.json()) == (202, {"accepted": 0, "duplicates": 0, "pending": 0})
    shown = edge.show()
    assert shown["report"] == {**report, "excluded": {**dict.fromkeys(EXCLUDED, 0), **report["excluded"]}}
    assert (shown["acknowledged"], shown["versions_behind"], shown["staleness_s"]) == (report["tag"], 0, 0.0)
    assert shown["uplink_saved"] == 0.5
    assert shown["last_seen"]


EXCLUDED = ("unreliable", "uninformative", "redundant", "budget", "spool")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_three_formats_are_taken(edge: EdgeApi, kind: str) -> None:
    assert edge.upload([("a", crop(kind=kind))]).status_code == 202


def noisy(side: int) -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, "PNG", compress_level=0)
    return file.getvalue()


BAD_SAMPLES: dict[str, tuple[list[tuple[str, bytes]], int, tuple[str, ...]]] = {
    "no image": ([("a", crop()), ("b", b"no image")], 422, ("images.1 (b)", "not a JPEG")),
    "empty": ([("a", b"")], 422, ("images.0 (a)", "empty")),
    "cut short": ([("a", crop()[:-200])], 422, ("images.0 (a)", "broken")),
    "gif": ([("a", crop(kind="GIF"))], 422, ("images.0 (a)", "not a JPEG")),
    "wide": ([("ok", crop()), ("a", crop(size=(328, 160)))], 413, ("images.1 (a)", "328x160", "160x160")),
    "high": ([("a", crop(size=(160, 328)))], 413, ("images.0 (a)", "160x328")),
    "bytes": ([("a", noisy(600))], 413, ("images.0 (a)", "1048576")),
    "many": (crops(*"abcdefghi"), 413, ("limit is 8",)),
    "name": ([("a b", crop())], 422, ("images.0", "'a b'")),
    "path": ([("../a", crop())], 422, ("images.0",)),
    "long name": ([("a" * 129, crop())], 422, ("images.0",)),
}


@pytest.mark.parametrize("case", BAD_SAMPLES)
def test_a_bad_sample_is_named_and_its_neighbours_are_not_taken_in(edge: EdgeApi, case: str) -> None:
    samples, status, words = BAD_SAMPLES[case]
    check_problem(edge.upload(samples, {"seen": 1}), status, *words)
    shown = edge.show()
    assert (shown["samples"]["received"], shown["report"]) == (0, None)
    assert edge.upload(crops("a")).status_code == 202


@pytest.mark.parametrize(
    ("report", "where"),
    [
        ('{"seen": NaN}', "seen"),
        ('{"seen": -1}', "seen"),
        ('{"seen": 1e300}', "seen"),
        ('{"seen": 1.5}', "seen"),
        ('{"seen": "many"}', "seen"),
        ('{"latency_ms": NaN}', "latency_ms"),
        ('{"latency_ms": Infinity}', "latency_ms"),
        ('{"latency_ms": -0.1}', "latency_ms"),
        ('{"uploaded": 99999999999999999999}', "uploaded"),
        ('{"excluded": {"redundant": -1}}', "excluded.redundant"),
        ('{"excluded": {"whim": 1}}', "excluded.whim"),
        ('{"excluded": []}', "excluded"),
        ('{"taken_at": {"a": NaN}}', "taken_at.a"),
        ('{"taken_at": {"a": -5}}', "taken_at.a"),
        ('{"taken_at": {"a": 1e300}}', "taken_at.a"),
        ('{"taken_at": []}', "taken_at"),
        ('{"tag": "<script>"}', "tag"),
        ('{"tag": 7}', "tag"),
        ('{"mood": "good"}', "mood"),
        ("[]", "body.report"),
        ("null", "body.report"),
        ("{", "body.report"),
        ("", "body.report"),
        ("\udcff".encode("utf-8", "surrogateescape").decode("latin-1"), "body.report"),
    ],
)
def test_a_lying_edge_is_not_believed(edge: EdgeApi, report: str, where: str) -> None:
    check_problem(edge.upload(crops("a"), report), 422, where)
    shown = edge.show()
    assert (shown["samples"]["received"], shown["report"]) == (0, None)


def test_bodies_that_are_no_upload(edge: EdgeApi, api: Api) -> None:
    path, form = f"/v1/edges/{edge.id}/samples", {"Content-Type": "multipart/form-data; boundary=b"}

    def send(content: bytes, **headers: str) -> httpx.Response:
        return api.post(path, content=content, headers={**edge.headers, **headers})

    check_problem(send(b"{}", **{"Content-Type": "application/json"}), 415, "multipart/form-data")
    check_problem(send(b""), 415)
    check_problem(send(b"", **form), 400)
    check_problem(send(b"--b\r\nbroken", **form), 400)
    check_problem(send(b"--b--", **{"Content-Type": "multipart/form-data"}), 400)
    wrong = [("pictures", ("a", crop()))]
    check_problem(api.post(path, files=wrong, headers=edge.headers), 422, "'pictures'")
    twice = [("report", (None, b"{}"))] * 2
    check_problem(api.post(path, files=twice, headers=edge.headers), 422, "too many form fields")
    no_file = [("images", (None, b"text"))]
    check_problem(api.post(path, files=no_file, headers=edge.headers), 422)
    assert edge.show()["samples"]["received"] == 0


def test_a_full_queue_says_when_to_come_back(
    serve: Callable[..., Live], tiny_models: tuple[ModelSpec, ModelSpec]
) -> None:
    with Api(serve(models=tiny_models, max_samples=3).url, timeout=SLOW_S) as api:
        edge = EdgeApi(api)
        assert edge.upload(crops(*"ab")).status_code == 202
        answer = edge.upload(crops(*"cd"))
        check_problem(answer, 429, "2 samples", "None was taken in")
        assert int(answer.headers["Retry-After"]) >= 1
        assert edge.upload(crops(*"abc")).json() == {"accepted": 1, "duplicates": 2, "pending": 3}
        assert edge.show()["samples"]["received"] == 3


def test_a_recipe_without_a_teacher_learns_from_no_samples_yet_feeds_an_edge(api: Api) -> None:
    edge = EdgeApi(api, recipe={"norm": {"name": "bn1"}, "update": {"name": "tent", "lr": 0.01}})
    check_problem(edge.upload(crops("a")), 422, "without a teacher")
    assert edge.upload(report={"seen": 1}).status_code == 202
    before, source, _ = opened(edge.ask())
    assert api.step(edge.stream, tensors(4)).status_code == 200
    after, moved, _ = opened(edge.ask(since=before["tag"]))
    assert after["tag"] != before["tag"]
    assert (joined(source, moved) if after["codec"] == "delta" else moved) != source


# Updates


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


def test_a_group_learns_from_all_and_all_get_the_same(api: Api) -> None:
    group = new_id("fog")
    first, second = EdgeApi(api, group=group), EdgeApi(api, group=group, key="o" * 40)
    assert first.stream == second.stream == f"group-{group}"
    first.upload(crops(*"ab"))
    assert second.upload(crops(*"ab")).json() == {"accepted": 2, "duplicates": 0, "pending": 4}
    learnt(first, 2)
    assert [each.show()["samples"]["used"] for each in (first, second)] == [2, 2]
    mine, offsets, _ = opened(first.ask())
    theirs, same, _ = opened(second.ask(), "o" * 40)
    assert (mine["edge"], theirs["edge"]) == (first.id, second.id)
    assert (mine["tag"], offsets) == (theirs["tag"], same)
    assert api.show(first.stream)["step"] == 1


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


# The end


def test_the_stream_goes_with_its_last_edge(api: Api) -> None:
    group = new_id("fog")
    first, second = EdgeApi(api, group=group), EdgeApi(api, group=group)
    first.upload(crops("a"))
    second.upload(crops("b"))
    wrong = {"Authorization": "Bearer wrong"}
    check_problem(api.delete(f"/v1/edges/{first.id}", headers=wrong), 403)
    assert api.delete(f"/v1/edges/{first.id}", headers=first.headers).status_code == 204
    assert second.upload(report={}).json()["pending"] == 1
    assert api.delete(f"/v1/edges/{second.id}").status_code == 204
    check_problem(api.get(f"/v1/streams/{second.stream}"), 404)
    for call in (api.get, api.delete):
        check_problem(call(f"/v1/edges/{second.id}"), 404)
    check_problem(second.ask(), 404)
    check_problem(second.upload(crops("c")), 404)


def test_a_stream_that_was_deleted_is_made_anew_for_its_edge(api: Api, edge: EdgeApi) -> None:
    tag = edge.tag
    edge.upload(crops("a"))
    assert api.delete(f"/v1/streams/{edge.stream}").status_code == 204
    shown = edge.show()
    assert (shown["tag"], shown["samples"]["received"]) == (None, 0)
    header, _, _ = opened(edge.ask(since=tag))
    assert header["codec"] == "full"
    assert header["tag"].partition(".")[0] != tag.partition(".")[0]
    assert edge.upload(crops("a")).json()["accepted"] == 1


def test_an_edge_whose_model_is_not_hosted_is_to_come_back(
    edge: EdgeApi, serve: Callable[..., Live], tiny_models: tuple[ModelSpec, ModelSpec]
) -> None:
    with Api(serve(models=tiny_models[1:]).url, timeout=SLOW_S) as api:
        for answer in own_calls(api, edge.id, edge.headers):
            check_problem(answer, 503, "'tiny'")
            assert int(answer.headers["Retry-After"]) >= 1


def test_the_store_may_be_away(serve: Callable[..., Live], tmp_path: Path) -> None:
    with Api(serve(redis_url=f"unix://{tmp_path}/none.sock").url, timeout=SLOW_S) as api:
        for answer in [*own_calls(api, "gate", {"Authorization": f"Bearer {KEY}"}), api.get("/v1/edges")]:
            check_problem(answer, 503)


# Streams that have a teacher, by the ordinary calls


def test_a_taught_stream_predicts_and_learns_from_no_prediction(api: Api) -> None:
    stream = api.make(recipe=taught())
    answer = api.step(stream, tensors(2))
    check_problem(answer, 422, "query.adapt", "adapt=false")
    assert api.step(stream, tensors(2), adapt=False).status_code == 200
    before = api.state(stream)
    copy = api.post(f"/v1/streams/{stream}/fork").json()["id"]
    assert api.state(copy) == before
    assert api.post(f"/v1/streams/{stream}/reset").status_code == 200
    assert api.state(stream) == before


def test_snapshots_of_a_taught_stream_need_its_teacher(
    api: Api, edge: EdgeApi, serve: Callable[..., Live], tiny_models: tuple[ModelSpec, ModelSpec]
) -> None:
    state = api.state(edge.stream)
    path, kind = f"/v1/snapshots/{new_id('snap')}", {"Content-Type": "application/octet-stream"}
    with Api(serve(models=tiny_models[:1]).url, timeout=SLOW_S) as poor:
        check_problem(poor.put(path, content=state, headers=kind), 409, "'other'")
        check_problem(poor.post(f"/v1/streams/{edge.stream}/reset"), 422, "'other'")
        assert poor.step(edge.stream, tensors(2), adapt=False).status_code == 200
    assert api.put(path, content=state, headers=kind).status_code == 201
    sid = path.rpartition("/")[2]
    assert api.post(f"/v1/streams/{edge.stream}/restore", json={"snapshot": sid}).status_code == 200


# Packages


def test_a_package_is_whole_and_comes_in_parts(api: Api) -> None:
    answer = api.get("/v1/models/tiny/package")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    manifest = answer.json()
    assert manifest["fingerprint"] == api.get("/v1/models/tiny").json()["fingerprint"]
    assert manifest["files"].keys() >= {"model.onnx", "norm.npz", "reference.npy"}
    for name, listed in manifest["files"].items():
        path = f"/v1/models/tiny/package/{name}"
        whole = api.get(path)
        assert (whole.status_code, len(whole.content)) == (200, listed["bytes"])
        assert hashlib.sha256(whole.content).hexdigest() == listed["sha256"]
        assert whole.headers["ETag"] == f'"{listed["sha256"]}"'
        part = api.get(path, headers={"Range": "bytes=5-"})
        assert (part.status_code, part.content) == (206, whole.content[5:])
        assert part.headers["Content-Range"] == f"bytes 5-{listed['bytes'] - 1}/{listed['bytes']}"


def test_a_package_is_not_sent_again_to_who_has_it(api: Api) -> None:
    for path in ("/v1/models/tiny/package", "/v1/models/tiny/package/norm.npz"):
        etag = api.get(path).headers["ETag"]
        for known in (etag, f"W/{etag}", f'"a", {etag}', "*"):
            answer = api.get(path, headers={"If-None-Match": known})
            assert (answer.status_code, answer.content, answer.headers["ETag"]) == (304, b"", etag)
        assert api.get(path, headers={"If-None-Match": '"a"'}).status_code == 200


def test_a_part_that_has_changed_is_sent_whole(api: Api) -> None:
    path = "/v1/models/tiny/package/norm.npz"
    headers = {"Range": "bytes=5-", "If-Range": '"another"'}
    assert api.get(path, headers=headers).status_code == 200
    headers["If-Range"] = api.get(path).headers["ETag"]
    assert api.get(path, headers=headers).status_code == 206


@pytest.mark.parametrize("part", ["bytes=9999999999-", "bytes=9999999999-99999999999", "bytes=-0"])
def test_a_part_after_the_end_is_refused(api: Api, part: str) -> None:
    path = "/v1/models/tiny/package/norm.npz"
    answer = api.get(path, headers={"Range": part})
    check_problem(answer, 416, "bytes")
    assert answer.headers["Content-Range"] == f"bytes */{len(api.get(path).content)}"


@pytest.mark.parametrize("part", ["bytes", "bytes=", "bytes=a-b", "lines=1-2", "bytes=5-2", "bytes=0-1,3-4", "é"])
def test_what_is_no_part_of_ours_is_passed_over(api: Api, part: str) -> None:
    headers = [(b"Range", part.encode("latin-1"))]
    assert api.get("/v1/models/tiny/package/norm.npz", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "path",
    ["tiny/package/none", "tiny/package/manifest.json", "tiny/package/%2e%2e%2f%2e%2e%2fetc%2fpasswd", "none/package"],
)
def test_only_what_the_manifest_names_is_there(api: Api, path: str) -> None:
    check_problem(api.get(f"/v1/models/{path}"), 404)


def test_edges_are_listed_page_by_page(api: Api) -> None:
    prefix = new_id("page")
    for number in (2, 0, 1):
        EdgeApi(api, f"{prefix}-{number}", recipe="ema")
    found, after = [], f"{prefix}-"
    for size in (2, 1):
        page = api.get("/v1/edges", params={"limit": size, "after": after}).json()
        found += [each["id"] for each in page["edges"]]
        after = page["next"] or found[-1]
    assert found == [f"{prefix}-{number}" for number in range(3)]
    for query in ({"limit": 0}, {"limit": 1001}, {"after": "a b"}):
        check_problem(api.get("/v1/edges", params=query), 422)
    assert json.loads(api.get("/v1/edges", params={"after": "zzzz"}).text) == {"edges": [], "next": None}
