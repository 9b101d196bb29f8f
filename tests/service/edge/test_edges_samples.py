"""The samples and reports of edges: taken in once, or refused as a whole."""

import io
from collections.abc import Callable

import httpx
import numpy as np
import pytest
from edges import BATCH, SLOW_S, EdgeApi, crop, crops, learnt
from PIL import Image
from servers import Api, Live, check_problem, new_id

from normstream.adaptation import ModelSpec


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
        group = new_id("fog")
        busy, quiet = EdgeApi(api, group=group), EdgeApi(api, group=group)
        assert busy.upload(crops("a")).status_code == 202
        check_problem(busy.upload(crops("b")), 429, "1 of them of this edge")
        assert quiet.upload(crops(*"ab")).status_code == 202
