"""A real Redis and real servers for the tests of the service."""

import asyncio
import secrets
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, suppress
from inspect import isawaitable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from redis import Redis
from servers import Api, Live, data_folder, live, new_id, tensors, tiny, tiny_checkpoint

from normstream.adaptation import ModelSpec
from normstream.service.settings import Settings
from normstream.service.storage.embedded_redis import EmbeddedRedis
from normstream.service.storage.keyspace import Keyspace
from normstream.service.storage.records import StoreUnavailable
from normstream.service.storage.redis_link import connect
from normstream.service.storage.store import Store

KEYS = Keyspace("normstream")


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """One server for all tests; each keeps to a prefix of its own."""
    with (
        tempfile.TemporaryDirectory(prefix="ns-") as folder,
        asyncio.Runner(loop_factory=asyncio.new_event_loop) as loop,
    ):
        embedded = EmbeddedRedis(Path(folder))
        loop.run(embedded.__aenter__())
        yield embedded.url
        loop.run(embedded.__aexit__())


@pytest.fixture
def data() -> Iterator[Path]:
    """A data folder whose path is short, as a unix socket's must be."""
    with tempfile.TemporaryDirectory(prefix="ns-") as folder:
        yield Path(folder, "data")


@pytest.fixture
async def own_redis(data: Path) -> AsyncIterator[EmbeddedRedis]:
    """A server that the test may break."""
    async with EmbeddedRedis(data) as embedded:
        yield embedded


@pytest.fixture
async def make_store(redis_url: str) -> AsyncIterator[Callable[..., Store]]:
    """Makes stores, workers as it were, that share their streams and are closed in the end."""
    prefix = f"test-{secrets.token_hex(4)}"
    async with AsyncExitStack() as stack:

        def make(url: str = redis_url, *, max_connections: int = 64, **options: Any) -> Store:
            options = {"timeout_s": 20, **options}  # see tests/conftest.py
            client = connect(url, max_connections=max_connections, timeout_s=options["timeout_s"])
            store = Store(client, prefix=prefix, **options)
            stack.push_async_callback(store.aclose)
            return store

        yield make


@pytest.fixture
async def store(make_store: Callable[..., Store]) -> Store:
    """A store on the shared server."""
    return make_store()


@pytest.fixture
async def worker(make_store: Callable[..., Store]) -> Store:
    """A second store, of another worker."""
    return make_store()


@pytest.fixture
def eventually() -> Callable[..., Awaitable[Any]]:
    """Waits until a check is true, and answers what it answered; a store that is away counts as not yet."""

    async def wait(check: Callable[[], Any], limit_s: float = 5.0) -> Any:
        async with asyncio.timeout(limit_s):
            while True:
                with suppress(StoreUnavailable):
                    answer = check()
                    if answer := await answer if isawaitable(answer) else answer:
                        return answer
                await asyncio.sleep(0.02)

    return wait


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelSpec, ModelSpec]:
    """Two models that differ in their weights alone."""
    folder = tmp_path_factory.mktemp("weights")
    return tiny(tiny_checkpoint(folder)), tiny(tiny_checkpoint(folder, seed=1), name="other")


@pytest.fixture(scope="session")
def kept(tmp_path_factory: pytest.TempPathFactory, packages: Path) -> Path:
    """The data folder of all servers."""
    return data_folder(tmp_path_factory.mktemp("servers") / "data", packages)


@pytest.fixture
def serve(redis_url: str, tiny_models: tuple[ModelSpec, ModelSpec], kept: Path) -> Iterator[Callable[..., Live]]:
    """Starts servers with settings of the test's own, on the Redis that all share."""
    with ExitStack() as stack:

        def start(**settings: Any) -> Live:
            given = {"models": tiny_models[:1], "redis_url": redis_url, "data": kept, "drain_timeout_s": 2, **settings}
            return stack.enter_context(live(Settings(**given)))

        yield start


@pytest.fixture(scope="session")
def server(redis_url: str, tiny_models: tuple[ModelSpec, ModelSpec], kept: Path) -> Iterator[Live]:
    """A server with both models and low limits, for tests that leave it as it is."""
    limits = {"max_images": 8, "max_body_bytes": 2**20, "max_pixels": 4_000_000}
    with live(Settings(models=tiny_models, redis_url=redis_url, data=kept, **limits)) as running:
        yield running


@pytest.fixture
def api(server: Live) -> Iterator[Api]:
    """A client of that server."""
    with Api(server.url) as client:
        yield client


@pytest.fixture(scope="module")
def redis(redis_url: str) -> Iterator[Redis]:
    """A client of that Redis, for tests that look at what is stored."""
    with Redis.from_url(redis_url) as client:
        yield client


@pytest.fixture(scope="module")
def neighbours(server: Live) -> Iterator[tuple[str, str]]:
    """Two streams that have adapted: one that bad requests go to, and its neighbour."""
    with Api(server.url) as client:
        victim, neighbour = client.make(new_id("victim")), client.make(new_id("neighbour"))
        for seed, stream in enumerate((victim, neighbour)):
            assert client.step(stream, tensors(2, seed)).status_code == 200
        yield victim, neighbour


def stored(redis: Redis, streams: tuple[str, str]) -> Any:
    """All that the store knows of the streams, and which keys it holds at all."""
    return [redis.hgetall(KEYS.stream(each)) for each in streams], set(redis.scan_iter(count=10_000))


@pytest.fixture(scope="module")
def foreseen(server: Live, neighbours: tuple[str, str]) -> np.ndarray:
    """What the neighbour predicts."""
    with Api(server.url) as client:
        return client.logits(neighbours[1], tensors(1, 9))


@pytest.fixture
def unharmed(api: Api, redis: Redis, neighbours: tuple[str, str], foreseen: np.ndarray) -> Iterator[str]:
    """A stream that the test may send anything to; afterwards nothing is changed or new, and the server is well."""
    records, keys = stored(redis, neighbours)
    yield neighbours[0]
    now_records, now_keys = stored(redis, neighbours)
    assert now_records == records
    assert now_keys <= keys  # some may have expired
    assert api.get("/readyz").status_code == 200
    np.testing.assert_array_equal(api.logits(neighbours[1], tensors(1, 9)), foreseen)
