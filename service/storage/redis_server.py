"""One run of a Redis server as a child that cannot outlive the service.

    service ──lifeline──> sh ──> Redis ──> appendonlydir/
                           └───────┴─────> server.log, locked

The service holds the writing end of a pipe, the lifeline. When it closes, as it does however the service ends,
the shell has Redis shut down. (A child that the service forks without exec holds the lifeline too.) Shell and
Redis share the lock of the log, so that whoever gets it next knows that both are gone and that all they had is on
disk.
"""

import asyncio
import fcntl
import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Self

# The part in parentheses watches the lifeline, which is descriptor 3 because a shell gives background jobs an
# empty standard input. It keeps away from the log, whose lock it would hold.
SUPERVISOR = """
exec 3<&0 </dev/null
"$@" 3<&- &
server=$!
(read -r _ <&3; kill -TERM "$server") >/dev/null 2>&1 &
watcher=$!
exec 3<&-
wait "$server"
status=$?
kill "$watcher" 2>/dev/null
exit "$status"
"""

POLL_S = 0.02
LOG_TAIL_BYTES = 2000


class RedisServerError(RuntimeError):
    """The server does not run; the message says why, shows its log and says what to do."""


class RedisServer:
    """A server that answers; made by `start`."""

    def __init__(self, process: asyncio.subprocess.Process, home: Path, log_start: int) -> None:
        self._process = process
        self._home = home
        self._log_start = log_start

    @classmethod
    async def start(cls, binary: Path, home: Path, socket: Path, *, lifeline: int, timeout_s: float) -> Self:
        """Run a server once every earlier one of this folder is gone, and wait until it answers.

        Args:
            binary: What to run.
            home: The folder of its data and its log.
            socket: Where it listens.
            lifeline: The reading end of a pipe; the server ends when the writing end is closed.
            timeout_s: How long it may take to load its data.

        Raises:
            RedisServerError: It ended, or did not answer in time.
        """
        log = await _claim(_log_of(home), socket, timeout_s)
        try:
            log_start = os.fstat(log).st_size
            process = await asyncio.create_subprocess_exec(
                *("/bin/sh", "-c", SUPERVISOR, "normstream-redis"),
                *(str(binary), *_options(home, socket)),
                stdin=lifeline,
                stdout=log,
                stderr=log,
                # Ctrl-C reaches all of a terminal's session, and the service drains before it lets go of Redis.
                start_new_session=True,
            )
        finally:
            os.close(log)
        server = cls(process, home, log_start)
        try:
            await server._until_ready(socket, timeout_s)
        except BaseException:
            await server.kill()
            raise
        return server

    async def wait(self) -> int:
        """Wait until the server has ended; answers its status as a shell tells it."""
        status = await self._process.wait()
        if status < 0:
            # Somebody killed the shell alone: what it looked after must not stay behind.
            self._signal(signal.SIGTERM)
        return status

    async def kill(self) -> None:
        """End the server at once."""
        self._signal(signal.SIGKILL)
        await self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    async def _until_ready(self, socket: Path, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while await ask(socket, b"PING") != b"+PONG\r\n":
            if self._process.returncode is not None:
                raise self._error(f"ended with status {self._process.returncode} as it started")
            if time.monotonic() > deadline:
                raise self._error(f"did not answer within {timeout_s:g} s of its start")
            await asyncio.sleep(POLL_S)

    def _error(self, what: str) -> RedisServerError:
        tail = _log_of(self._home).read_bytes()[self._log_start :][-LOG_TAIL_BYTES:].decode(errors="replace")
        return RedisServerError(
            f"The embedded Redis {what}. The end of {_log_of(self._home)}:\n\n{tail.strip()}\n\n"
            "If its append-only file is damaged, repair that with `valkey-check-aof --fix` (or `redis-check-aof`), "
            f"or move {self._home} out of the way to begin with no streams."
        )


async def ask(socket: Path, command: bytes) -> bytes:
    """The first line that a server on the socket replies; nothing, if none does."""
    with suppress(OSError):
        async with asyncio.timeout(1):
            reader, writer = await asyncio.open_unix_connection(str(socket))
            try:
                writer.write(command + b"\r\n")
                return await reader.readline()
            finally:
                writer.close()
    return b""


async def _claim(log: Path, socket: Path, timeout_s: float) -> int:
    """The log, opened and locked; an earlier server that still has it is told to shut down."""
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    deadline = time.monotonic() + timeout_s
    try:
        while not _lock(descriptor):
            if time.monotonic() > deadline:
                raise RedisServerError(
                    f"An earlier Redis still runs on {log.parent}: see {log}, and end it (socket {socket})."
                )
            await ask(socket, b"SHUTDOWN")
            await asyncio.sleep(POLL_S)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _log_of(home: Path) -> Path:
    return home / "server.log"


def _options(home: Path, socket: Path) -> list[str]:
    options = {
        "port": "0",
        "unixsocket": str(socket),
        "unixsocketperm": "700",
        "dir": str(home),
        "logfile": "",
        "save": "",
        "appendonly": "yes",
        "appendfsync": "everysec",
        "maxmemory-policy": "noeviction",
    }
    return [part for name, value in options.items() for part in (f"--{name}", value)]
