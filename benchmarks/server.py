"""A server in a process of its own, as users run it."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from normstream.clients import Client

START_TIMEOUT_S = 60.0


@contextmanager
def serving(data: Path, **environment: str) -> Iterator[tuple[str, int]]:
    """`normstream serve` while the block lasts: its URL and process id."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("normstream")), "serve", "--port", str(port), "--data", str(data)]
    with subprocess.Popen([*command, "--log-level", "warning"], env=os.environ | environment) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            _wait(url, process)
            yield url, process.pid
        finally:
            process.terminate()


def _wait(url: str, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    with Client(url) as client:
        while not client.ready():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the server did not start")
            time.sleep(0.1)
