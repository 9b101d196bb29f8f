"""The packages of edges: made once, and sent whole or in parts."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from edges import SLOW_S, EdgeApi
from servers import Api, Live, check_problem, new_id

from normstream.adaptation import HostingError
from normstream.service import packages


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
