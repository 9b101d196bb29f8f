"""The packages of edges: made once, and sent whole or in parts."""

import asyncio
import hashlib
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from edges import SLOW_S, EdgeApi
from servers import Api, Live, check_problem, new_id, tensors, tiny, tiny_checkpoint

from normstream.adaptation import ModelSpec, load_model
from normstream.service import exporting, packages


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The fingerprints of the models that were exported, or could not be."""
    export, fingerprints = packages.exported, []

    async def noted(spec: ModelSpec, fingerprint: str, folder: Path, threads: int) -> Path:
        fingerprints.append(fingerprint)
        return await export(spec, fingerprint, folder, threads)

    monkeypatch.setattr(packages, "exported", noted)
    return fingerprints


def test_a_model_that_cannot_be_exported_is_refused_and_tried_once(
    serve: Callable[..., Live], tmp_path: Path, tried: list[str]
) -> None:
    plain = tiny(tiny_checkpoint(tmp_path, 0, "test_nfnet"), "plain", "test_nfnet")
    with Api(serve(models=(plain,)).url, timeout=SLOW_S) as api:
        name = new_id("e")
        for _ in range(2):
            registered = EdgeApi(api, name, model="plain", recipe="source").registered
            check_problem(registered, 422, "'plain' has no normalisation layer", "an edge could not adapt it")
        check_problem(api.get("/v1/models/plain/package"), 422, "no normalisation layer")
        check_problem(api.get(f"/v1/streams/edge-{name}"), 404)
    assert len(tried) == 1


def test_while_a_package_is_made_the_server_predicts(
    serve: Callable[..., Live], data: Path, tmp_path: Path, tried: list[str]
) -> None:
    model = tiny(tiny_checkpoint(tmp_path, 5))
    with Api(serve(models=(model,), data=data).url, timeout=SLOW_S) as api, ThreadPoolExecutor(2) as threads:
        stream = api.make()
        asked = [threads.submit(api.get, "/v1/models/tiny/package") for _ in range(2)]
        predictions = 0
        while not any(each.done() for each in asked):
            assert api.step(stream, tensors(1)).status_code == 200
            predictions += 1
        assert [each.result().status_code for each in asked] == [200, 200]
    assert predictions > 20  # it takes seconds, and a prediction milliseconds
    assert len(tried) == 1


def test_who_waits_for_a_package_is_sent_away_when_the_server_drains(
    serve: Callable[..., Live], data: Path, tmp_path: Path
) -> None:
    server = serve(models=(tiny(tiny_checkpoint(tmp_path, 9)),), data=data)
    with Api(server.url, timeout=SLOW_S) as api, ThreadPoolExecutor(2) as threads:
        asked = [
            threads.submit(api.get, "/v1/models/tiny/package"),
            threads.submit(api.post, "/v1/edges", json={"recipe": "ema"}),
        ]
        time.sleep(0.5)
        server.terminate()
        for each in asked:
            check_problem(each.result(), 503, "shutting down")
    server.thread.join(20)
    assert not server.thread.is_alive()
    assert list((data / "packages").glob("*")) == []


def test_a_package_of_weights_that_have_changed_on_the_disk_is_not_made(
    serve: Callable[..., Live], data: Path, tmp_path: Path
) -> None:
    checkpoint = tiny_checkpoint(tmp_path, 6)
    with Api(serve(models=(tiny(checkpoint),), data=data).url, timeout=SLOW_S) as api:
        tiny_checkpoint(tmp_path, 7).rename(checkpoint)
        check_problem(api.get("/v1/models/tiny/package"), 422, "weights have changed", "start the server again")


async def test_a_process_that_fails_is_told_with_what_it_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(OSError, match="ended with status 1"):
        await exporting.exported(tiny(tmp_path / "none"), "sha256:0", tmp_path, 1)


async def test_a_process_ends_with_who_waits_for_it(tmp_path: Path, eventually: Callable[..., Any]) -> None:
    model, folder = tiny(tiny_checkpoint(tmp_path, 5)), tmp_path / "packages"
    making = asyncio.create_task(exporting.exported(model, load_model(model).fingerprint, folder, 1))
    await eventually(lambda: list(folder.glob(".export-*")), 60)
    (child,) = [each for each in psutil.Process().children() if exporting.__name__ in each.cmdline()]
    making.cancel()
    with pytest.raises(asyncio.CancelledError):
        await making
    assert not child.is_running()
    assert list(folder.iterdir()) == []


def test_weights_that_cannot_be_read_for_now_are_tried_again(
    serve: Callable[..., Live], data: Path, tmp_path: Path
) -> None:
    checkpoint = tiny_checkpoint(tmp_path, 8)
    with Api(serve(models=(tiny(checkpoint),), data=data).url, timeout=SLOW_S) as api:
        away = checkpoint.rename(tmp_path / "away")
        check_problem(api.get("/v1/models/tiny/package"), 503, "cannot be made now", "no checkpoint")
        away.rename(checkpoint)
        assert api.get("/v1/models/tiny/package").status_code == 200


def test_a_package_that_cannot_be_written_is_told(serve: Callable[..., Live], tmp_path: Path) -> None:
    (tmp_path / "packages").write_text("in the way")
    with Api(serve(data=tmp_path).url, timeout=SLOW_S) as api:
        answer = EdgeApi(api, recipe="ema").registered
        check_problem(answer, 503, "cannot be made now")
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
