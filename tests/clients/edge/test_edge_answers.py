"""Answers of something between an edge and its server: too long, or packed into little."""

import gzip
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from surroundings import until

from normstream.clients.edge.folder import Identity
from normstream.clients.edge.link import Link, Unreachable
from normstream.clients.edge.package import Package
from normstream.clients.errors import ConnectionFailed

MEBIBYTE = 2**20
LENGTH = 96 * MEBIBYTE
IDENTITY = Identity("gate", "k" * 43)


class Verbose(BaseHTTPRequestHandler):
    """Answers everything with one body, as long as somebody reads it."""

    status: int
    headers_sent: dict[str, str]
    chunks: list[bytes]
    sent: list[int]

    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(self.status)
        for name, value in self.headers_sent.items():
            self.send_header(name, value)
        self.end_headers()
        try:
            for chunk in self.chunks:
                self.wfile.write(chunk)
                self.sent.append(len(chunk))
        except ConnectionError:
            self.close_connection = True

    do_GET = do_POST = answer

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def verbose(
    status: int = 200, kind: str = "application/json", chunks: list[bytes] | None = None, **headers: str
) -> Iterator[tuple[Link, list[int]]]:
    sent: list[int] = []
    chunks = chunks or [b" " * MEBIBYTE] * (LENGTH // MEBIBYTE)
    said = {"Content-Type": kind, "Content-Length": str(sum(map(len, chunks))), **headers}
    handler = type("Bound", (Verbose,), {"status": status, "headers_sent": said, "chunks": chunks, "sent": sent})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        link = Link(f"http://127.0.0.1:{server.server_port}")
        try:
            yield link, sent
        finally:
            link.close()
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("call", "kind", "most_mebibytes"),
    [
        (lambda link, _: link.register(IDENTITY), "application/json", 1),
        (lambda link, _: link.upload(IDENTITY, [], {}), "application/json", 1),
        (lambda link, _: link.ask(IDENTITY, None, "float16", 0), "application/octet-stream", 64),
        (lambda link, cache: Package.fetch(link.http, "tiny", cache), "application/json", 16),
    ],
    ids=["register", "upload", "update", "manifest"],
)
@pytest.mark.parametrize("status", [200, 500])
def test_an_answer_is_not_read_for_longer_than_it_may_be(
    tmp_path, call: Callable[[Link, Path], Any], kind, most_mebibytes, status
):
    with verbose(status, kind) as (link, sent):
        with pytest.raises((Unreachable, ConnectionFailed), match="answered with more than"):
            call(link, tmp_path)
        assert sum(sent) < (most_mebibytes + 16) * MEBIBYTE  # what lies in the sockets' buffers


@pytest.mark.parametrize("status", [200, 500])
@pytest.mark.parametrize(
    "call",
    [lambda link, _: link.register(IDENTITY), lambda link, cache: Package.fetch(link.http, "tiny", cache)],
    ids=["link", "package"],
)
def test_what_came_packed_is_not_unpacked(tmp_path, call: Callable[[Link, Path], Any], status):
    packed = gzip.compress(bytes(16 * MEBIBYTE))
    with verbose(status, chunks=[packed], **{"Content-Encoding": "gzip"}) as (link, _):
        tracemalloc.start()
        try:
            with pytest.raises((Unreachable, ConnectionFailed), match="'gzip' content, which was not asked for"):
                call(link, tmp_path)
            _, most_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert most_bytes < 4 * MEBIBYTE


def test_no_answer_is_to_come_packed(server, start):
    start().drain(5)
    until(lambda: server.reports)
    assert set(server.encodings) == {"identity"}
