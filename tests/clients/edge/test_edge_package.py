import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import numpy as np
import pytest

from normstream.clients.edge.errors import BadPackage
from normstream.clients.edge.package import Manifest, Package
from normstream.clients.errors import ConnectionFailed, NotFound

MODEL = "convolutions"


class Shelf(BaseHTTPRequestHandler):
    """Serves a package's files, with ranges, and breaks answers off when told to."""

    protocol_version = "HTTP/1.1"
    folder: Path
    asked: list[tuple[str, str | None]]
    break_after: dict[str, int]  # bytes of a file's next answer
    ranges = True

    def do_GET(self) -> None:
        name = self.path.partition("/package")[2].lstrip("/") or "manifest.json"
        wanted = self.headers.get("Range")
        self.asked.append((name, wanted))
        file = self.folder / name
        if not self.path.startswith(f"/v1/models/{MODEL}/package") or not file.is_file():
            self.send_error(404)
            return
        content = file.read_bytes()
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and self.ranges else 0
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        sent = content[start:]
        if name in self.break_after:
            sent = sent[: self.break_after.pop(name)]
            self.close_connection = True
        self.wfile.write(sent)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def shelf(convolutions_package: Package, tmp_path: Path) -> Iterator[type[Shelf]]:
    folder = tmp_path / "served"
    shutil.copytree(convolutions_package.folder, folder)

    class Mine(Shelf):
        asked: list[tuple[str, str | None]] = []  # noqa: RUF012
        break_after: dict[str, int] = {}  # noqa: RUF012

    Mine.folder = folder
    server = ThreadingHTTPServer(("127.0.0.1", 0), Mine)
    server.handle_error = lambda *_: None  # a client that hangs up
    Mine.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield Mine
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def http(shelf) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=shelf.url) as client:
        yield client


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def names(shelf):
    return [name for name, _ in shelf.asked]


def test_a_package_is_fetched_once_and_opens_without_network(http, shelf, cache, convolutions_package):
    package = Package.fetch(http, MODEL, cache)
    assert sorted(names(shelf)) == sorted(["manifest.json", *package.manifest.files])
    shelf.asked.clear()
    assert Package.fetch(http, MODEL, cache).manifest == package.manifest
    assert names(shelf) == ["manifest.json"]
    cached = Package.cached(cache, package.manifest.fingerprint)
    assert cached.manifest == convolutions_package.manifest
    for name, value in convolutions_package.source.items():
        np.testing.assert_array_equal(cached.source[name], value)
    assert not list(cached.folder.glob("*.part"))


def test_a_download_goes_on_where_it_broke_off(http, shelf, cache, convolutions_package):
    shelf.break_after["model.onnx"] = 700
    with pytest.raises(ConnectionFailed):
        Package.fetch(http, MODEL, cache)
    with pytest.raises(BadPackage):  # half a package is none
        Package.cached(cache, convolutions_package.manifest.fingerprint)
    (part,) = cache.glob("*/model.onnx.part")
    had = part.stat().st_size
    assert 0 < had <= 700
    shelf.asked.clear()
    package = Package.fetch(http, MODEL, cache)
    assert ("model.onnx", f"bytes={had}-") in shelf.asked
    assert "adaptive.onnx" not in names(shelf)  # it was complete
    assert package.model.read_bytes() == convolutions_package.model.read_bytes()


def test_a_server_without_ranges_starts_over(http, shelf, cache, convolutions_package):
    shelf.ranges = False
    shelf.break_after["model.onnx"] = 700
    with pytest.raises(ConnectionFailed):
        Package.fetch(http, MODEL, cache)
    assert Package.fetch(http, MODEL, cache).model.read_bytes() == convolutions_package.model.read_bytes()


@pytest.mark.parametrize("left", [b"of something else", b"x" * 10**6])
def test_what_was_left_of_another_file_is_fetched_anew(http, cache, left, convolutions_package):
    folder = cache / convolutions_package.manifest.fingerprint.removeprefix("sha256:")
    folder.mkdir(parents=True)
    (folder / "model.onnx.part").write_bytes(left)
    assert Package.fetch(http, MODEL, cache).model.read_bytes() == convolutions_package.model.read_bytes()


@pytest.mark.parametrize("wrong", [b"short", b"x" * 10**6])
def test_a_file_that_is_not_what_the_manifest_says_is_refused(http, shelf, cache, wrong):
    (shelf.folder / "model.onnx").write_bytes(wrong)
    with pytest.raises((BadPackage, ConnectionFailed), match=r"model\.onnx"):
        Package.fetch(http, MODEL, cache)
    assert not list(cache.glob("*/model.onnx"))


def test_a_damaged_file_in_the_cache_is_noticed_and_fetched_again(http, shelf, cache):
    package = Package.fetch(http, MODEL, cache)
    content = bytearray(package.model.read_bytes())
    content[100] ^= 1
    package.model.write_bytes(content)
    with pytest.raises(BadPackage, match=r"model\.onnx"):
        Package.cached(cache, package.manifest.fingerprint)
    shelf.asked.clear()
    Package.fetch(http, MODEL, cache)
    assert names(shelf) == ["manifest.json", "model.onnx"]
    Package.cached(cache, package.manifest.fingerprint)


def test_what_the_server_does_not_have_is_told(http, cache):
    with pytest.raises(NotFound):
        Package.fetch(http, "unknown", cache)


def test_no_server_is_told(cache):
    with httpx.Client(base_url="http://127.0.0.1:1") as http, pytest.raises(ConnectionFailed):
        Package.fetch(http, MODEL, cache)


@pytest.mark.parametrize("fingerprint", ["", "sha256:0", "../../etc", "sha256:" + "0" * 64])
def test_what_is_not_cached_is_told(cache, fingerprint):
    with pytest.raises(BadPackage):
        Package.cached(cache, fingerprint)


WRONG = {
    "no json": b"<html>",
    "a list": b"[]",
    "another format": {"format": "normstream.package/9"},
    "a fingerprint that is a path": {"fingerprint": "sha256:../../etc"},
    "a file outside": {"files": {"../model.onnx": {"bytes": 1, "sha256": "0" * 64}}},
    "no files": {"files": {}},
    "no layers": {"layers": None},
    "an unknown filter": {"preprocessing": {"interpolation": "wavelet"}},
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_a_manifest_that_cannot_be_used_is_refused(wrong, convolutions_package):
    content = json.loads((convolutions_package.folder / "manifest.json").read_bytes())
    if isinstance(wrong, dict):
        for name, value in wrong.items():
            content[name] = content[name] | value if name == "preprocessing" else value
        wrong = json.dumps(content).encode()
    with pytest.raises(BadPackage):
        Manifest.parse(wrong)


def test_a_later_server_may_say_more(convolutions_package):
    content = json.loads((convolutions_package.folder / "manifest.json").read_bytes())
    content["more"] = content["preprocessing"]["more"] = content["layers"][0]["more"] = 1
    assert Manifest.parse(json.dumps(content).encode()) == convolutions_package.manifest


def test_parameters_that_do_not_fit_the_layers_are_refused(tmp_path, convolutions_package):
    np.savez(tmp_path / "norm.npz", **{name: value[1:] for name, value in convolutions_package.source.items()})
    with pytest.raises(BadPackage, match="weight"):
        _ = Package(tmp_path, convolutions_package.manifest).source
    (tmp_path / "norm.npz").write_bytes(b"nothing")
    with pytest.raises(BadPackage, match="norm"):
        _ = Package(tmp_path, convolutions_package.manifest).source


def test_the_edge_loads_nothing_of_the_server():
    forbidden = ("torch", "timm", "onnx.", "pydantic", "fastapi", "redis", "safetensors")
    modules = ("package", "preprocessing", "runtime", "local", "selection", "budget", "update")
    imports = ", ".join(f"normstream.clients.edge.{name}" for name in modules)
    program = f"import sys, normstream.clients.edge, {imports}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert "normstream.clients.edge.runtime" in loaded
    assert "onnx" not in loaded
    assert not [name for name in loaded if name.startswith((*forbidden, "normstream.adaptation", "normstream.service"))]
