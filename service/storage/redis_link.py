"""The way to Redis: a client whose every failure is a `StoreUnavailable`, within bounded time."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any

from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import BusyLoadingError, OutOfMemoryError, ReadOnlyError, RedisError, ResponseError
from redis.maint_notifications import MaintNotificationsConfig

from normstream.service.storage.records import StoreUnavailable

Script = Callable[..., Awaitable[Any]]
"""Runs as `script(keys, args)`, or queues itself as `script(keys, args, client=pipeline)`."""

MAX_READERS = 1000
TIMEOUT_S = 0.8
"""How long Redis may take to answer: who asks the service is to hear within a second that its store is away."""

_REASONS: dict[type[Exception], str] = {
    BusyLoadingError: "Redis is still loading its data.",
    OutOfMemoryError: "Redis has no memory left: raise its maxmemory or delete streams.",
    ReadOnlyError: "This Redis is a read-only replica: give Normstream the URL of the primary.",
}


def connect(url: str, *, max_connections: int = 64, timeout_s: float = TIMEOUT_S) -> Redis:
    """A client for `Store`, which retries a little.

    Args:
        url: `redis://`, `rediss://` or `unix://`.
        max_connections: Commands in flight at once; others wait their turn.
        timeout_s: How long one answer may take.
    """
    pool = ConnectionPool.from_url(
        url,
        max_connections=max_connections,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        socket_read_size=256 * 1024,
        retry=Retry(ExponentialBackoff(cap=0.2, base=0.05), retries=2),
        # While these are on, redis-py hands out connections without looking for unread replies of a
        # cancelled command: another stream's state.
        maint_notifications_config=MaintNotificationsConfig(enabled=False),
    )
    return Redis.from_pool(pool)


class RedisLink:
    """A Redis client that answers in bounded time or raises `StoreUnavailable`."""

    def __init__(self, redis: Redis, timeout_s: float) -> None:
        self._redis = redis
        self._timeout_s = timeout_s
        # Not a BlockingConnectionPool: its condition loses a wake-up when a waiter is cancelled (CPython
        # gh-112202), and others then wait for a connection that is free.
        self._turns = asyncio.Semaphore(redis.connection_pool.max_connections)

    def for_readers(self) -> "RedisLink":
        """A link to the same Redis whose reads may block without keeping a connection from others."""
        pool = self._redis.connection_pool
        options = {**pool.connection_kwargs, "socket_timeout": None}
        readers = ConnectionPool(pool.connection_class, max_connections=MAX_READERS, **options)
        return RedisLink(Redis.from_pool(readers), self._timeout_s)

    def script(self, *names: str) -> Script:
        """The Lua scripts `store_<name>.lua`, which stand beside this file, as one: the first define, the last acts."""
        texts = [files(__package__).joinpath(f"store_{name}.lua").read_text() for name in names]
        return self._redis.register_script("\n".join(texts))

    async def ids(self, key: str, limit: int, after: str | None) -> list[str]:
        """A page of the ids in a sorted set: those that follow `after`, in order."""
        start = "-" if after is None else f"({after}"
        async with self.reach() as redis:
            found: Any = await redis.zrange(key, start, "+", bylex=True, offset=0, num=limit)
        return [each.decode() for each in found]

    @asynccontextmanager
    async def reach(self, blocking_s: float = 0.0) -> AsyncIterator[Redis]:
        """The client, for commands one after another that together take no longer than the time-out.

        Args:
            blocking_s: How long a command among them may block by its own wish, on top.

        Raises:
            StoreUnavailable: Redis failed, or did not answer in time.
        """
        limit_s = self._timeout_s + blocking_s
        cancellations = _cancellations()
        try:
            async with asyncio.timeout(limit_s), self._turns:
                yield self._redis
        except TimeoutError as error:
            raise StoreUnavailable(f"Redis did not answer within {limit_s:g} s.") from error
        except (RedisError, OSError) as error:
            raise StoreUnavailable(_REASONS.get(type(error), f"Redis failed: {error}")) from error
        finally:
            # redis-py sends by asyncio.wait_for, which before Python 3.12 may keep a cancellation to itself (gh-86296):
            # who waits for this task to end would wait for ever.
            if _cancellations() > cancellations:
                raise asyncio.CancelledError

    async def check(self) -> list[str]:
        """Make sure that Redis answers; says in words for its operator what about it endangers what it keeps."""
        async with self.reach() as redis:
            await redis.ping()
            return await _eviction_warnings(redis)

    async def aclose(self) -> None:
        """Close the client."""
        await self._redis.aclose()


def _cancellations() -> int:
    """How often the running task was told to end."""
    task = asyncio.current_task()
    return task.cancelling() if task else 0


def owned(kind: str, asked: str, answered: str) -> None:
    """Refuse another's record: no mix-up in client or server may hand one stream's state to another.

    Raises:
        StoreUnavailable: The record's own id is not the one that was asked for.
    """
    if answered != asked:
        raise StoreUnavailable(f"Redis answered for {kind} '{asked}' with that of '{answered}'; it was refused.")


async def _eviction_warnings(redis: Redis) -> list[str]:
    try:
        policy = (await redis.config_get("maxmemory-policy"))["maxmemory-policy"]
    except ResponseError as error:
        return [
            f"Redis does not tell its maxmemory-policy ({error}): make sure that it is 'noeviction', "
            "for an evicted state is lost."
        ]
    if policy in ("noeviction", b"noeviction"):
        return []
    return [
        f"Redis may drop streams when memory is short (maxmemory-policy {policy}): an evicted state is "
        "lost. Set it to 'noeviction'."
    ]
