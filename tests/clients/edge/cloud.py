"""What an edge sees of a server: a real HTTP server on loopback that can be taken away and made to misbehave."""

import hashlib
import hmac
import json
import re
import socket
import threading
import time
import zlib
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.parser import BytesParser
from email.policy import HTTP
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import numpy as np
from pydantic import ValidationError

from normstream.service.edge_schemas import UploadReport

PROBLEM = "application/problem+json"


@dataclass(frozen=True)
class Answer:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


def problem(status: int, detail: str = "no", **headers: str) -> Answer:
    body = json.dumps({"type": "about:blank", "title": "no", "status": status, "detail": detail, "errors": []})
    return Answer(status, body.encode(), {"Content-Type": PROBLEM, **headers})


def said(value: Any, status: int = 200) -> Answer:
    return Answer(status, json.dumps(value).encode(), {"Content-Type": "application/json"})


@dataclass
class Cloud:
    """A server of edges.

    `away` breaks every connection off; the answers in `instead` are given in place of the next ones to samples.
    """

    url: str
    package: Path | None = None
    edges: dict[str, dict[str, Any]] = field(default_factory=dict)
    samples: dict[str, bytes] = field(default_factory=dict)
    reports: list[dict[str, Any]] = field(default_factory=list)
    batches: list[list[str]] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    encodings: list[str] = field(default_factory=list)  # that are accepted
    asked: list[dict[str, str]] = field(default_factory=list)
    away: bool = False
    unknown: bool = False
    bad_samples: set[bytes] = field(default_factory=set)
    instead: deque[Answer] = field(default_factory=deque)
    offer: tuple[str, bytes, str] | None = None  # tag, body, signature
    offered: threading.Condition = field(default_factory=threading.Condition)
    stopped: bool = False

    def publish(self, tag: str, body: bytes, signature: str) -> None:
        with self.offered:
            self.offer = (tag, body, signature)
            self.offered.notify_all()

    def answer(self, method: str, path: str, query: dict[str, str], headers: Any, body: bytes) -> Answer:
        self.calls.append(f"{method} {path}")
        self.encodings.append(headers["Accept-Encoding"])
        if (method, path) == ("POST", "/v1/edges"):
            return self.register(json.loads(body))
        if method == "GET" and path.startswith("/v1/models/"):
            return self.file(path, headers)
        edge = path.split("/")[3]
        if self.unknown or edge not in self.edges:
            return problem(404, f"no edge {edge}")
        if headers["Authorization"] != f"Bearer {self.edges[edge]['key']}":
            return problem(403, "wrong key")
        return self.take(headers, body) if path.endswith("/samples") else self.affine(query)

    def register(self, asked: dict[str, Any]) -> Answer:
        known = self.edges.setdefault(asked["id"], asked)
        if known != asked:
            return problem(409, f"edge {asked['id']} exists with another key, model or recipe")
        self.unknown = False
        given = {"model": "tiny", "stream": f"edge-{asked['id']}", "tag": "g.0", "package": "/v1/models/tiny/package"}
        return said({**asked, **given, "teacher": "large" if asked["recipe"] == "cema" else None}, 201)

    def file(self, path: str, headers: Any) -> Answer:
        name = path.partition("/package")[2].lstrip("/") or "manifest.json"
        content = (self.package / name).read_bytes()
        etag = f'"sha256:{hashlib.sha256(content).hexdigest()}"'
        if found := re.fullmatch(r"bytes=(\d+)-", headers.get("Range", "")):
            start = int(found[1])
            span = f"bytes {start}-{len(content) - 1}/{len(content)}"
            return Answer(206, content[start:], {"Content-Range": span, "ETag": etag})
        return Answer(200, content, {"ETag": etag})

    def take(self, headers: Any, body: bytes) -> Answer:
        if self.instead:
            return self.instead.popleft()
        fields = list(parts(headers["Content-Type"], body))
        images = {name: content for kind, name, content in fields if kind == "images"}
        if self.bad_samples & set(images.values()):
            return problem(422, "images[0] is no image")
        report = json.loads(told := next(content for kind, _, content in fields if kind == "report"))
        try:
            UploadReport.model_validate_json(told)
        except ValidationError as error:
            return problem(422, f"body.report: {error.errors()[0]['msg']}")
        assert set(report["taken_at"]) == set(images)
        self.reports.append(report)
        self.batches.append(list(images))
        new = images.keys() - self.samples.keys()
        self.samples.update(images)
        return said({"accepted": len(new), "duplicates": len(images) - len(new), "pending": 0}, 202)

    def affine(self, query: dict[str, str]) -> Answer:
        self.asked.append(query)
        deadline = time.monotonic() + float(query.get("wait", 0))
        with self.offered:
            while not self.stopped and not self.away and (not self.offer or self.offer[0] == query.get("since")):
                self.offered.wait(min(0.2, max(0.0, deadline - time.monotonic())))
                if time.monotonic() >= deadline:
                    return Answer(204)
            if not self.offer or self.stopped:
                return Answer(204)
            tag, body, signature = self.offer
        headers = {"Content-Type": "application/octet-stream", "ETag": f'"{tag}"', "Normstream-Signature": signature}
        return Answer(200, body, headers)


def parts(content_type: str, body: bytes) -> Iterator[tuple[str, str | None, bytes]]:
    """The parts of a multipart form: field, file name, content."""
    message = BytesParser(policy=HTTP).parsebytes(b"Content-Type: " + content_type.encode() + b"\r\n\r\n" + body)
    for part in message.iter_parts():
        name = part.get_param("name", header="content-disposition")
        yield name, part.get_filename(), part.get_payload(decode=True)


def sign(key: str, body: bytes) -> str:
    return f"hmac-sha256={hmac.new(key.encode(), body, hashlib.sha256).hexdigest()}"


def update_body(
    manifest: dict[str, Any],
    offsets: dict[str, np.ndarray],
    probe: np.ndarray,
    *,
    edge: str,
    tag: str,
    precision: str = "float32",
    base: tuple[str, bytes] | None = None,
    **changes: Any,
) -> tuple[bytes, bytes]:
    """An update by the book, and the bytes of its offsets, which make the next one a delta."""
    plain = b"".join(values.astype(f"<{np.dtype(precision).str[1:]}").tobytes() for values in offsets.values())
    sent = plain if base is None else bytes(a ^ b for a, b in zip(plain, base[1], strict=True))
    header = {
        "format": "normstream.update/1",
        "edge": edge,
        "model": manifest["model"],
        "fingerprint": manifest["fingerprint"],
        "tag": tag,
        "base": base and base[0],
        "codec": "full" if base is None else "delta",
        "precision": precision,
        "tensors": {name: len(values) for name, values in offsets.items()},
        "digest": f"sha256:{hashlib.sha256(plain).hexdigest()}",
        "created_at": 1_800_000_000.0,
        "probe": list(probe.shape),
        **changes,
    }
    payload = zlib.compress(probe.astype("<f4").tobytes() + sent)
    return json.dumps(header).encode() + b"\n" + payload, plain


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    cloud: Cloud

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = urlsplit(self.path)
        answer = None
        if not self.cloud.away:
            answer = self.cloud.answer(self.command, parts.path, dict(parse_qsl(parts.query)), self.headers, body)
        if answer is None or self.cloud.away:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if answer.status not in {204, 304}:
            self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body)

    do_GET = do_POST = handle_any

    def handle(self) -> None:
        try:
            super().handle()
        except ConnectionError:
            self.close_connection = True

    def log_message(self, *args: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    block_on_close = False
    daemon_threads = True


@contextmanager
def cloud(package: Path | None = None) -> Iterator[Cloud]:
    handler = type("BoundHandler", (Handler,), {})
    with Server(("127.0.0.1", 0), handler) as server:
        handler.cloud = running = Cloud(f"http://127.0.0.1:{server.server_port}", package)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield running
        finally:
            running.stopped = True
            server.shutdown()
            thread.join()
