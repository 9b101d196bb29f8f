"""A server with its Redis and two edges, each a process of its own, of which one after the other is killed."""

import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from servers import CLASSES, TINY, Process, data_folder, tiny_checkpoint, until

RECIPE = {"norm": {"name": "tbr"}, "update": {"name": "cema", "teacher": "big", "batch": 8, "patience_s": 1}}
ALL = ("--unreliable", "100", "--uninformative", "0", "--redundant", "2")  # everything is worth sending


def photo(generator: np.random.Generator) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(generator.integers(0, 256, (180, 200, 3), dtype=np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


class Edge:
    """`normstream-edge run` as a process, which a thread of this one feeds for ever."""

    def __init__(self, server: str, name: str, folder: Path) -> None:
        self.name = name
        self.lines: list[dict] = []
        self._log = (folder.parent / f"{folder.name}.log").open("ab")
        command = [sys.executable, "-m", "normstream.clients.edge", "run", "--source", "-", "--threads", "1", *ALL]
        words = ["--server", server, "--edge", name, "--folder", folder, "--recipe", json.dumps(RECIPE)]
        self.process = subprocess.Popen(
            [*command, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**os.environ, "NO_PROXY": "127.0.0.1"},
        )
        self._threads = [threading.Thread(target=each) for each in (self._feed, self._read)]
        for thread in self._threads:
            thread.start()

    def _feed(self) -> None:
        generator = np.random.default_rng(0)
        try:
            while True:
                self.process.stdin.write(photo(generator))
                self.process.stdin.flush()
                time.sleep(0.1)
        except (BrokenPipeError, ValueError):
            pass

    def _read(self) -> None:
        for line in self.process.stdout:
            if line.endswith(b"\n"):
                self.lines.append(json.loads(line))

    @property
    def version(self) -> str | None:
        return self.lines[-1]["version"] if self.lines else None

    def goes_on(self) -> None:
        """It predicts, whatever else is the case."""
        seen = len(self.lines)
        until(lambda: len(self.lines) > seen + 3, 30)

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        self.process.send_signal(number)
        self.process.wait(30)
        for thread in self._threads:
            thread.join()
        for stream in (self.process.stdin, self.process.stdout, self._log):
            with contextlib.suppress(BrokenPipeError):
                stream.close()


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def serve(tmp_path, port, packages):
    """Starts the server on the same port and data each time."""
    models = []
    for seed, name in enumerate(("tiny", "big")):
        checkpoint = tiny_checkpoint(tmp_path, seed)
        models += ["--model", f"name={name},architecture={TINY},checkpoint={checkpoint},classes={CLASSES}"]
    started, data = [], data_folder(tmp_path / "data", packages)

    def serve() -> Process:
        started.append(Process(tmp_path / f"server-{len(started)}.log", *models, "--port", str(port), data=data))
        return started[-1].ready()

    yield serve
    for process in started:
        process.stop()


@pytest.mark.timeout(300)
def test_edges_go_on_whatever_is_killed(serve, port, tmp_path):
    server = serve()
    url = f"http://127.0.0.1:{port}"
    edges = {name: Edge(url, name, tmp_path / name) for name in ("north", "south")}
    try:
        for edge in edges.values():
            until(lambda edge=edge: edge.version, 90)

        server.kill()
        for edge in edges.values():
            edge.goes_on()

        edges["north"].end(signal.SIGKILL)
        edges["north"] = Edge(url, "north", tmp_path / "north")  # while the server is away
        edges["north"].goes_on()
        assert edges["north"].lines[0]["version"] is not None

        server = serve()
        before = {name: edge.version for name, edge in edges.items()}
        for name, edge in edges.items():
            until(lambda edge=edge, name=name: edge.version != before[name], 120)

        server.redis().kill()
        for edge in edges.values():
            edge.goes_on()
        api = server.api()
        until(lambda: api.get("/readyz").status_code == 200, 60)
        before = {name: edge.version for name, edge in edges.items()}
        for name, edge in edges.items():
            until(lambda edge=edge, name=name: edge.version != before[name], 120)
        shown = {name: api.get(f"/v1/edges/{name}").json() for name in edges}
        assert all(each["samples"]["used"] > 0 and each["report"]["rolled_back"] == 0 for each in shown.values())
        assert shown["north"]["stream"] != shown["south"]["stream"]
        api.close()
    finally:
        for edge in edges.values():
            edge.end()
    for name in edges:
        status = json.loads((tmp_path / name / "status.json").read_bytes())
        assert status["counters"]["rejected"] == 0
        assert status["counters"]["uploaded"] > 0
