"""A real HTTP server on loopback that answers by a script, failures included, and remembers what it was sent."""

import json
import socket
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

PROBLEM = {"Content-Type": "application/problem+json"}
EVENTS = {"Content-Type": "text/event-stream"}


@dataclass(frozen=True)
class Reply:
    """What the server does with one request."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    drop: bool = False  # read the request, then break the connection off
    open_end: bool = False  # the body ends where the connection does
    hang: bool = False  # answer nothing until the server is stopped


def say(value: Any, status: int = 200, **headers: str) -> Reply:
    return Reply(status, json.dumps(value).encode(), {"Content-Type": "application/json", **headers})


def problem(status: int, title: str = "", detail: str = "", **headers: str) -> Reply:
    body = {"type": "about:blank", "title": title, "status": status, "detail": detail}
    return Reply(status, json.dumps(body).encode(), {**PROBLEM, **headers})


def events(*blocks: str) -> Reply:
    return Reply(200, "".join(f"{block}\n\n" for block in blocks).encode(), EVENTS, open_end=True)


DROP = Reply(drop=True)
HANG = Reply(hang=True)


@dataclass(frozen=True)
class Seen:
    """A request that came."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Loopback:
    def __init__(self, url: str) -> None:
        self.url = url
        self.seen: list[Seen] = []
        self.replies: deque[Reply] = deque()
        self.stopped = threading.Event()

    def will(self, *replies: Reply) -> None:
        self.replies.extend(replies)

    @property
    def calls(self) -> list[str]:
        return [f"{seen.method} {seen.path}" for seen in self.seen]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits 40 ms for an ACK
    loopback: Loopback

    def answer(self) -> None:
        self.loopback.seen.append(self.request_seen())
        reply = self.loopback.replies.popleft() if self.loopback.replies else problem(500, "Not in the script")
        if reply.hang:
            self.loopback.stopped.wait(10)
        if reply.hang or reply.drop:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.send(reply)

    do_GET = do_POST = do_PUT = do_DELETE = answer

    def request_seen(self) -> Seen:
        parts = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        return Seen(self.command, parts.path, dict(parse_qsl(parts.query)), dict(self.headers), body)

    def send(self, reply: Reply) -> None:
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        if reply.open_end:
            self.send_header("Connection", "close")
        elif reply.status != 204:
            self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        self.wfile.write(reply.body)

    def log_message(self, *args: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    request_queue_size = 64
    block_on_close = False  # a kept-alive connection ends with its client, not with its server


@contextmanager
def serving() -> Iterator[Loopback]:
    handler = type("BoundHandler", (Handler,), {})
    with Server(("127.0.0.1", 0), handler) as server:
        handler.loopback = loopback = Loopback(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield loopback
        finally:
            loopback.stopped.set()
            server.shutdown()
            thread.join()


def unused_url() -> str:
    """Return the URL of a port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"
