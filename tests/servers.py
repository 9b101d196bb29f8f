"""Real servers for the tests: the service under uvicorn in a thread, or as the process that people run."""

import asyncio
import io
import os
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import uvicorn
from fastapi import FastAPI

from normstream.adaptation import ModelSpec
from normstream.service.app import create_app
from normstream.service.server import DrainingServer
from normstream.service.settings import Settings

NPY = "application/x-npy"
SIZE = (3, 160, 160)  # the tiny model's input
CLASSES = 7
TINY = "test_efficientnet"
COMMAND = Path(sys.executable).with_name("normstream")


def tiny_checkpoint(folder: Path, seed: int = 0, architecture: str = TINY) -> Path:
    """Weights of a small network, which steps in a few milliseconds; if nothing else is said it has batch norms."""
    import timm
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(seed)
    path = folder / f"{architecture}-{seed}.safetensors"
    save_file(timm.create_model(architecture, num_classes=CLASSES).state_dict(), path)
    return path


def tiny(checkpoint: Path, name: str = "tiny", architecture: str = TINY) -> ModelSpec:
    return ModelSpec(name=name, architecture=architecture, checkpoint=checkpoint, classes=CLASSES)


def data_folder(path: Path, packages: Path) -> Path:
    """A server's data folder, whose packages are those in another folder."""
    path.mkdir(parents=True)
    (path / "packages").symlink_to(packages)
    return path


def until(check: Callable[[], Any], limit_s: float = 10.0) -> Any:
    """What the check answers once that is true; a server that is away counts as not yet."""
    deadline = time.monotonic() + limit_s
    while True:
        try:
            if answer := check():
                return answer
        except httpx.TransportError:
            pass
        assert time.monotonic() < deadline, f"not within {limit_s:g} s"
        time.sleep(0.01)


def new_id(what: str = "s") -> str:
    return f"{what}-{secrets.token_hex(6)}"


class Api(httpx.Client):
    """An HTTP client with the few calls that most tests begin with."""

    def __init__(self, url: str, **options: Any) -> None:
        # There is no TLS here, whose certificates take longer to load than most tests.
        super().__init__(base_url=url, **{"timeout": 20, "trust_env": False, "verify": False, **options})

    def make(self, stream: str = "", recipe: Any = "ema", **fields: Any) -> str:
        answer = self.post("/v1/streams", json={"id": stream or new_id(), "recipe": recipe, **fields})
        assert answer.status_code == 201, answer.text
        return answer.json()["id"]

    def step(self, stream: str, images: np.ndarray, **query: Any) -> httpx.Response:
        return self.post(
            f"/v1/streams/{stream}/predict", content=npy(images), headers={"Content-Type": NPY}, params=query
        )

    def logits(self, stream: str, images: np.ndarray, adapt: bool = False) -> np.ndarray:
        answer = self.post(
            f"/v1/streams/{stream}/predict",
            content=npy(images),
            headers={"Content-Type": NPY, "Accept": NPY},
            params={"adapt": adapt, "output": "logits"},
        )
        assert answer.status_code == 200, answer.text
        return np.load(io.BytesIO(answer.content))

    def show(self, stream: str) -> dict[str, Any]:
        answer = self.get(f"/v1/streams/{stream}")
        assert answer.status_code == 200, answer.text
        return answer.json()

    def state(self, stream: str) -> bytes:
        """The bytes of a stream's state, by way of a snapshot that is gone afterwards."""
        kept = self.post(f"/v1/streams/{stream}/snapshots")
        assert kept.status_code == 201, kept.text
        path = f"/v1/snapshots/{kept.json()['id']}"
        state = self.get(path).content
        assert self.delete(path).status_code == 204
        return state


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def tensors(count: int = 1, seed: int = 0, size: tuple[int, int, int] = SIZE) -> np.ndarray:
    """Preprocessed images."""
    return np.random.default_rng(seed).standard_normal((count, *size), dtype=np.float32)


def check_problem(answer: httpx.Response, status: int, *words: str) -> dict[str, Any]:
    """An answer that is a problem by RFC 9457, with these words in its detail."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem.keys() == {"type", "title", "status", "detail", "errors"}
    assert problem["status"] == status
    assert re.fullmatch(r"[a-z]+:\S+", problem["type"])
    assert problem["title"]
    for word in words:
        assert word in problem["detail"], problem["detail"]
    for fault in problem["errors"]:
        assert fault.keys() == {"where", "problem"}
    return problem


@dataclass
class Live:
    """A server in a thread of this process."""

    app: FastAPI
    server: DrainingServer
    thread: threading.Thread

    @property
    def url(self) -> str:
        host, port = self.server.servers[0].sockets[0].getsockname()
        return f"http://{host}:{port}"

    def terminate(self) -> None:
        """What SIGTERM does to the process."""
        self.server.handle_exit(signal.SIGTERM, None)


@contextmanager
def live(settings: Settings, port: int = 0) -> Iterator[Live]:
    """The application under a real uvicorn until the block ends; on a port of its own, if none is given."""
    app = create_app(settings)
    options: dict[str, Any] = {"log_config": None, "access_log": False, "timeout_graceful_shutdown": 5}
    config = uvicorn.Config(app, port=port, lifespan="off", **options)
    server = DrainingServer(config, app.state.admission, settings.drain_timeout_s)

    async def serve() -> None:
        async with app.router.lifespan_context(app):
            await server.serve()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="server")
    thread.start()
    running = Live(app, server, thread)
    try:
        until(lambda: server.started or not thread.is_alive())
        yield running
    finally:
        if thread.is_alive():
            running.terminate()
        thread.join(30)
        assert not thread.is_alive()


class Process:
    """`normstream serve` as a process; options and settings as people give them."""

    def __init__(self, log: Path, *options: str, **settings: object) -> None:
        self.log = log
        environment = {f"NORMSTREAM_{name.upper()}": str(value) for name, value in settings.items()}
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [COMMAND, "serve", "--port", "0", *options],
                env={**os.environ, **environment},
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                cwd=log.parent,
            )
        self.pid = self._process.pid
        self.url = ""

    @property
    def said(self) -> str:
        return self.log.read_text()

    def ready(self, limit_s: float = 60.0) -> "Process":
        """Wait until it listens."""
        self.url = until(self._listening, limit_s)
        return self

    def _listening(self) -> str:
        assert self._process.poll() is None, self.said
        found = re.search(r"Serving on (http://\S+)", self.said)
        return found[1] if found else ""

    def api(self, **options: Any) -> Api:
        return Api(self.url, **options)

    def family(self) -> list[psutil.Process]:
        """Its Redis, and the shells that look after that."""
        return psutil.Process(self.pid).children(recursive=True)

    def redis(self) -> psutil.Process:
        """Its Redis, not the copy of itself that may be writing the file at the moment."""
        servers = {each.pid: each for each in self.family() if each.name().endswith("-server")}
        (server,) = (each for each in servers.values() if each.ppid() not in servers)
        return server

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait(self, limit_s: float = 30.0) -> int:
        return self._process.wait(limit_s)

    def stop(self) -> int:
        """End it as an operator does."""
        if self._process.poll() is None:
            self._process.terminate()
        return self.wait()

    def kill(self) -> None:
        """End it at once, as a failing test must."""
        self._process.kill()
        self._process.wait()
