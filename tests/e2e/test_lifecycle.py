"""The life of a server process: it loses nothing, leaves nothing behind, and says what is wrong."""

import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest
from redis import Redis, RedisError
from servers import Api, Process, check_problem, new_id, tensors, until
from typer.testing import CliRunner

from normstream.clients.cli import app
from normstream.service.storage.redis_binary import find_server
from normstream.service.storage.redis_link import TIMEOUT_S


def gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def adapted(api: Api) -> dict[str, bytes]:
    """Streams that have adapted, and their states."""
    streams = [api.make(new_id(), recipe) for recipe in ("ema", "alpha_bn")]
    for seed, stream in enumerate(streams):
        assert api.step(stream, tensors(2, seed)).status_code == 200
    return states(api, streams)


def states(api: Api, streams: Iterable[str]) -> dict[str, bytes]:
    return {stream: api.state(stream) for stream in streams}


def check_unavailable(answer: httpx.Response, *words: str) -> None:
    check_problem(answer, 503, *words)
    assert int(answer.headers["Retry-After"]) >= 1


def test_a_server_drains_restarts_and_recovers(start: Callable[..., Process], folder: Path) -> None:
    """A life on one data folder: drain, restart, a killed Redis, a rival, a kill, recovery."""
    data = ("--data", str(folder / "data"))
    # A batch is full with two images. A request of one waits, and so is in flight when the signal comes.
    server = start(*data, max_queue=1, max_batch=2, max_wait_ms=1200).ready()
    with server.api() as api:
        kept = adapted(api)
        drain_with_a_request_in_flight(server, api, drained := api.make())

    server = start(*data).ready()
    rival = start(*data)  # it takes a while to fail, during which the tests go on
    with server.api() as api:
        assert states(api, kept) == kept
        assert api.show(drained)["step"] == 1
        recover_from_a_killed_redis(server, api, kept)
        refused(rival, f"in use by another Normstream service (process {server.pid})", "data folder of its own")
        stream = api.make()
        for seed in range(5):
            assert api.step(stream, tensors(1, seed)).json()["step"] == seed + 1
        kept = states(api, [*kept, stream])
    redis = server.family()
    server.kill()

    server = start(*data).ready()
    assert all(map(gone, redis))
    with server.api() as api:
        assert states(api, kept) == kept
        assert api.step(stream, tensors()).json()["step"] == 6
    redis = server.family()
    assert server.stop() == 0, server.said
    assert all(map(gone, redis))


def drain_with_a_request_in_flight(server: Process, api: Api, stream: str) -> None:
    """SIGTERM: what is in flight ends well, what comes then is told to come back, and Redis goes too."""
    redis = server.family()
    path = f"/v1/streams/{stream}/predict"
    with ThreadPoolExecutor(1) as thread:
        in_flight = thread.submit(api.step, stream, tensors())
        until(lambda: api.post(path).status_code == 429)  # for one request is as many as may be inside
        server.signal(signal.SIGTERM)
        check_unavailable(until(lambda: (answer := api.post(path)).status_code != 429 and answer), "shutting down")
        unready = api.get("/readyz")
        assert (unready.status_code, unready.json()["ready"]) == (503, False)
        assert "shutting down" in unready.json()["reason"]
        assert not in_flight.done()
        assert in_flight.result().json()["step"] == 1
    assert server.wait() == 0, server.said
    assert all(map(gone, redis))
    assert "Traceback" not in server.said


def recover_from_a_killed_redis(server: Process, api: Api, kept: dict[str, bytes]) -> None:
    old = server.redis()
    old.kill()
    stream = next(iter(kept))
    answers = []

    def served() -> bool:
        answers.append(api.step(stream, tensors(), adapt=False))
        return answers[-1].status_code == 200

    until(served)
    for answer in answers[:-1]:
        check_unavailable(answer, "store")
    assert states(api, kept) == kept
    assert server.redis().pid != old.pid


def refused(process: Process, *words: str) -> None:
    """It has ended with an error, told in one line."""
    assert process.wait(60) not in {0, None}
    lines = [line for line in process.said.strip().splitlines() if not line.startswith("INFO")]
    assert len(lines) == 1, process.said
    for word in words:
        assert word in lines[0]


class External:
    """A Redis of the operator's."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.socket = folder / "redis.sock"
        self.run()

    def run(self, *options: str) -> None:
        fixed = ["--port", "0", "--unixsocket", self.socket, "--dir", self._folder, "--appendonly", "yes", "--save", ""]
        with (self._folder / "redis.log").open("ab") as log:
            command = [find_server(), *fixed, "--maxmemory-policy", "allkeys-lru"]
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        until(self._answers)

    def _answers(self) -> bool:
        try:
            with Redis(unix_socket_path=str(self.socket)) as redis:
                return redis.ping()
        except RedisError:
            return False

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def external(folder: Path) -> Iterator[External]:
    redis = External(folder)
    yield redis
    redis.kill()


def test_a_redis_that_goes_and_comes_back(start: Callable[..., Process], external: External) -> None:
    server = start("--redis", f"unix://{external.socket}", redis_timeout_s=TIMEOUT_S).ready()
    with server.api() as api:
        stream = next(iter(adapted(api)))
        external.process.send_signal(signal.SIGSTOP)
        check_away(api, stream)
        external.process.send_signal(signal.SIGCONT)
        until(lambda: api.get("/readyz").status_code == 200)
        assert api.step(stream, tensors()).json()["step"] == 2

        with api.stream("GET", f"/v1/streams/{stream}/events") as events:
            lines = events.iter_lines()
            assert next(lines).startswith(":")
            external.kill()
            check_away(api, stream)
            assert list(lines) == [""]  # they end, and a reader asks again
        external.run()
        until(lambda: api.get("/readyz").status_code == 200)
        assert api.step(stream, tensors()).json()["step"] == 3
        assert api.show(stream)["version"] == 4
    assert "maxmemory-policy allkeys-lru" in server.said
    assert "noeviction" in server.said
    assert server.stop() == 0
    assert "Traceback" not in server.said


def check_away(api: Api, stream: str) -> None:
    """Every kind of request is told within a second that the store is away; a little more when all come at once."""
    path = f"/v1/streams/{stream}"
    calls = [
        lambda: api.step(stream, tensors()),
        lambda: api.get(path),
        lambda: api.post("/v1/streams", json={}),
        lambda: api.post("/v1/streams/another/reset"),
        lambda: api.get(f"{path}/events"),
    ]
    with ThreadPoolExecutor(len(calls) + 1) as threads:
        began = time.monotonic()
        readiness = threads.submit(api.get, "/readyz")
        for answer in threads.map(lambda call: call(), calls):
            check_unavailable(answer, "store")
        unready = readiness.result()
        assert time.monotonic() - began < 1.5
    assert (unready.status_code, unready.json()["ready"]) == (503, False)
    assert "store" in unready.json()["reason"]
    assert api.get("/healthz").status_code == 200


def test_what_cannot_start_says_why_in_one_line(start: Callable[..., Process], folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        on_taken_port = start("--data", f"{folder}/1", "--port", port)
        with_no_such_model = start("--data", f"{folder}/2", "--model", "efficientnet_lite99")
        refused(on_taken_port, port, "in use")
        refused(with_no_such_model, "no architecture 'efficientnet_lite99'", "close: ")
    assert not list(folder.glob("*/redis/redis.sock"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--redis", "http://localhost"], ("redis_url", "http://localhost", "unix")),
        (["--model", "name=a,architecture=b,checkpoint=c"], ("models", "checkpoint and classes together")),
        (["--model", "resnet18", "--model", "resnet18"], ("models", "two models have one name")),
        (["--port", "99999"], ("--port", "65535")),
        (["--log-level", "loud"], ("--log-level", "loud", "warning")),
    ],
)
def test_mistyped_options_are_told(options: list[str], words: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, ["serve", *options], env={"COLUMNS": "200"})
    assert result.exit_code == 2
    for word in words:
        assert word in result.output
    assert "Traceback" not in result.output
