"""A proxy on loopback between an edge and its server: what comes from the server may be changed on its way."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

import httpx


class Wire(NamedTuple):
    """An update on its way."""

    body: bytes
    signature: str | None


def as_it_is(update: Wire) -> Wire:
    return update


@dataclass
class Proxy:
    """Passes everything on; `tamper` changes updates, and `seen` has them as they left the server."""

    url: str
    tamper: Callable[[Wire], Wire] = as_it_is
    seen: list[Wire] = field(default_factory=list)


@contextmanager
def tampering_proxy(server: str) -> Iterator[Proxy]:
    onward = httpx.Client(base_url=server, timeout=90, trust_env=False)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def pass_on(self) -> None:
            given = {name: value for name, value in self.headers.items() if name.lower() not in {"host", "connection"}}
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            try:
                answer = onward.request(self.command, self.path, headers=given, content=body)
            except (httpx.HTTPError, RuntimeError):  # the server is away, or the test is over
                self.close_connection = True
                return
            update = Wire(answer.content, answer.headers.get("Normstream-Signature"))
            if update.signature is not None:
                proxy.seen.append(update)
                update = proxy.tamper(update)
            self.send_response(answer.status_code)
            for name in ("Content-Type", "Content-Range", "ETag", "Retry-After"):
                if name in answer.headers:
                    self.send_header(name, answer.headers[name])
            if update.signature is not None:
                self.send_header("Normstream-Signature", update.signature)
            if answer.status_code not in {204, 304}:
                self.send_header("Content-Length", str(len(update.body)))
            self.end_headers()
            self.wfile.write(update.body)

        do_GET = do_POST = pass_on

        def handle(self) -> None:
            try:
                super().handle()
            except OSError:  # the edge hung up
                self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        block_on_close = False
        daemon_threads = True

    with Server(("127.0.0.1", 0), Handler) as listener:
        proxy = Proxy(f"http://127.0.0.1:{listener.server_port}")
        thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield proxy
        finally:
            listener.shutdown()
            thread.join()
            onward.close()
