"""A real Redis in the service's data folder, for a service that was given no Redis URL."""

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import BinaryIO, Self
from urllib.parse import quote

from normstream.service.storage.data_folder import DataFolderError, locked, private, socket_path
from normstream.service.storage.redis_binary import NoRedisBinary, find_server
from normstream.service.storage.redis_server import RedisServer, RedisServerError

STEADY_S = 10.0
FIRST_DELAY_S = 0.05
LAST_DELAY_S = 5.0

_log = logging.getLogger(__name__)


class EmbeddedRedisError(RuntimeError):
    """The embedded Redis cannot run; the message says why and what to do."""


class EmbeddedRedis:
    """Runs a Redis while its context lasts, and starts it again should it die.

    Args:
        data: The service's data folder, made if need be; one service at a time may use it.
        find: Finds the server's binary.
        start_timeout_s: How long Redis may take to load what it has on disk.
        stop_timeout_s: How long it may take to shut down before it is killed.
    """

    def __init__(
        self,
        data: Path,
        *,
        find: Callable[[], Path] = find_server,
        start_timeout_s: float = 60.0,
        stop_timeout_s: float = 10.0,
    ) -> None:
        self._data = data.absolute()
        self._find = find
        self._start_timeout_s = start_timeout_s
        self._stop_timeout_s = stop_timeout_s
        self._running = AsyncExitStack()
        self._socket: Path | None = None

    @property
    def socket(self) -> Path:
        """The unix socket on which Redis listens, while the context lasts."""
        if self._socket is None:
            raise RuntimeError("The embedded Redis is not running: enter it with `async with` first.")
        return self._socket

    @property
    def url(self) -> str:
        """The URL that `redis_link.connect` takes."""
        return f"unix://{quote(str(self.socket))}"

    async def __aenter__(self) -> Self:
        try:
            async with AsyncExitStack() as stack:
                await self._enter(stack)
                self._running = stack.pop_all()
        except (DataFolderError, NoRedisBinary, RedisServerError) as error:
            raise EmbeddedRedisError(str(error)) from error
        except OSError as error:
            raise EmbeddedRedisError(
                f"Redis cannot run in the data folder {self._data}: {error}. "
                "Make the folder writable, or choose another."
            ) from error
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._running.aclose()
        self._socket = None

    async def _enter(self, stack: AsyncExitStack) -> None:
        binary = await asyncio.to_thread(self._find)
        self._data.mkdir(parents=True, exist_ok=True)
        stack.enter_context(locked(self._data))
        home = private(self._data / "redis")
        socket = stack.enter_context(socket_path(home))
        reading, writing = os.pipe()
        lifeline = stack.enter_context(os.fdopen(writing, "wb"))
        start = partial(
            RedisServer.start,
            binary,
            home,
            socket,
            lifeline=stack.enter_context(os.fdopen(reading, "rb")).fileno(),
            timeout_s=self._start_timeout_s,
        )
        self._server = await start()
        stack.push_async_callback(self._stop, lifeline)
        stack.push_async_callback(_cancel, asyncio.create_task(self._keep(start)))
        self._socket = socket

    async def _keep(self, start: Callable[[], Awaitable[RedisServer]]) -> None:
        """Start a successor to every server that dies; sooner if it lived long."""
        delay_s = FIRST_DELAY_S
        while True:
            began = time.monotonic()
            status = await self._server.wait()
            lived_s = time.monotonic() - began
            delay_s = FIRST_DELAY_S if lived_s > STEADY_S else min(2 * delay_s, LAST_DELAY_S)
            _log.error("The embedded Redis ended with status %d; starting it again.", status)
            await asyncio.sleep(delay_s)
            try:
                self._server = await start()
            except (RedisServerError, OSError):
                _log.exception("The embedded Redis did not start again; trying on.")

    async def _stop(self, lifeline: BinaryIO) -> None:
        # From here on it is the same as if the service had been killed.
        lifeline.close()
        try:
            async with asyncio.timeout(self._stop_timeout_s):
                await self._server.wait()
        except TimeoutError:
            _log.warning("The embedded Redis did not end within %g s; killing it.", self._stop_timeout_s)
            await self._server.kill()


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])
