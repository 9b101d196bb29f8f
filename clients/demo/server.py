"""A server of one's own: a process, a free port, a temporary folder, and nothing left of them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Self

import httpx
from rich.console import Console

from normstream.clients import Client, NormstreamError

HOST = "127.0.0.1"
START_S, STOP_S, POLL_S = 120.0, 15.0, 0.1
LOG_LINES = 40


class ServerStartError(NormstreamError):
    """The server did not come up."""


@dataclass(frozen=True, slots=True)
class LocalServer:
    """A server that this process started.

    Attributes:
        url: Where it listens.
        folder: A temporary folder, gone when the server is.
    """

    url: str
    folder: Path
    _process: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        """Of its process."""
        return self._process.pid

    @classmethod
    def start(cls, folder: Path, **environment: str) -> Self:
        """Start `normstream serve` on a free port, with its data and its log in `folder` and settings as given."""
        port = free_port()
        script = str(Path(sys.executable).with_name("normstream"))
        command = [script, "serve", "--host", HOST, "--port", str(port), "--data", str(folder / "data")]
        with _log_of(folder).open("wb") as log:
            # A session of its own: Ctrl-C ends the demo, and the demo ends the server.
            process = subprocess.Popen(  # noqa: S603
                command, stdout=log, stderr=log, start_new_session=True, env=os.environ | environment
            )
        return cls(f"http://{HOST}:{port}", folder, process)

    def client(self) -> Client:
        """A client that goes straight there, whatever proxies the environment names."""
        return Client(self.url, transport=httpx.HTTPTransport())

    def log(self) -> str:
        """The end of what the server has said."""
        return "".join(_log_of(self.folder).read_text(errors="replace").splitlines(keepends=True)[-LOG_LINES:])

    def wait_until_ready(self) -> None:
        """Return once the server can serve.

        Raises:
            ServerStartError: It ended, or was not ready in time.
        """
        deadline = time.monotonic() + START_S
        with Client(self.url, retries=0, transport=httpx.HTTPTransport()) as client:
            while not client.ready():
                if self._process.poll() is not None:
                    raise ServerStartError(f"the server ended with status {self._process.returncode} as it started")
                if time.monotonic() > deadline:
                    raise ServerStartError(f"the server was not ready after {START_S:.0f} s")
                time.sleep(POLL_S)

    def wait(self) -> None:
        """Return when the server has ended."""
        self._process.wait()

    def stop(self) -> None:
        """End the server: politely, and after a while at once."""
        self._process.terminate()
        try:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_S)
        finally:
            self._process.kill()
            self._process.wait()


@contextmanager
def running(**environment: str) -> Iterator[LocalServer]:
    """A server that is ready, for as long as the block lasts."""
    with tempfile.TemporaryDirectory(prefix="normstream-") as folder:
        server = LocalServer.start(Path(folder), **environment)
        try:
            server.wait_until_ready()
            yield server
        finally:
            server.stop()


@contextmanager
def local_server(console: Console, **environment: str) -> Iterator[LocalServer]:
    """Run a server, with settings as given, for as long as the block lasts, however that ends."""
    with _ending_by_unwinding(), tempfile.TemporaryDirectory(prefix="normstream-demo-") as folder:
        server = LocalServer.start(Path(folder), **environment)
        try:
            with console.status("Starting the server"):
                server.wait_until_ready()
            yield server
        except NormstreamError:
            console.print(server.log(), markup=False, highlight=False)
            raise
        finally:
            server.stop()


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.create_server((HOST, 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def _log_of(folder: Path) -> Path:
    return folder / "server.log"


@contextmanager
def _ending_by_unwinding() -> Iterator[None]:
    """Let the signals that would end this process on the spot leave it through its `finally` blocks."""
    earlier = {number: signal.signal(number, _leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def _leave(number: int, _frame: object) -> NoReturn:
    sys.exit(128 + number)
