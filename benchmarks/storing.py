"""What a large lesson costs in Redis: how long its commit takes, and how long another stream waits meanwhile.

Both with the pieces that the store sends, and in one piece.
"""

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from timing import median_ms, table

from normstream.service.storage import blob_shelf
from normstream.service.storage.embedded_redis import EmbeddedRedis
from normstream.service.storage.records import StreamRecord
from normstream.service.storage.redis_link import connect
from normstream.service.storage.store import Store

MEBIBYTE = 2**20
PATIENCE_S = 60.0


async def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory(prefix="ns-") as folder:
        async with EmbeddedRedis(Path(folder, "data")) as redis:
            rows = [[size, *await _measure(redis.url, size * MEBIBYTE, rounds)] for size in (5, 20, 40, 200)]
    print(table(["learnt (MiB)", "commit, whole (ms)", "in pieces", "longest wait, whole (ms)", "in pieces"], rows))


async def _measure(url: str, size: int, rounds: int) -> list[str]:
    store, other = (Store(connect(url, timeout_s=PATIENCE_S), timeout_s=PATIENCE_S) for _ in range(2))
    await _create(other, "other")
    commits: dict[int, list[float]] = {size: [], blob_shelf.PIECE_BYTES: []}
    waits: dict[int, float] = dict.fromkeys(commits, 0.0)
    record = await _create(store, f"stream-{size}", os.urandom(size))
    for _ in range(rounds):
        for piece, seconds in commits.items():
            with _in_pieces_of(piece):
                record, taken, wait = await _commit(store, record, os.urandom(size), other)
            seconds.append(taken)
            waits[piece] = max(waits[piece], wait)
    await store.delete(record.id)
    for each in (store, other):
        await each.aclose()
    return [f"{value:.0f}" for value in (*map(median_ms, commits.values()), *(1000 * wait for wait in waits.values()))]


async def _create(store: Store, stream_id: str, learnt: bytes = b"") -> StreamRecord:
    record, _ = await store.create(stream_id, model="m", fingerprint="f", recipe="{}", state=b"state", learnt=learnt)
    return record


@contextmanager
def _in_pieces_of(size: int) -> Iterator[None]:
    usual, blob_shelf.PIECE_BYTES = blob_shelf.PIECE_BYTES, size
    try:
        yield
    finally:
        blob_shelf.PIECE_BYTES = usual


async def _commit(store: Store, record: StreamRecord, learnt: bytes, other: Store) -> tuple[StreamRecord, float, float]:
    """The record afterwards, seconds that the commit took, and the longest that a load of the other stream took."""
    longest, began = 0.0, time.perf_counter()
    commit = asyncio.ensure_future(_teach(store, record, learnt))
    while not commit.done():
        asked = time.perf_counter()
        await other.load("other")
        longest = max(longest, time.perf_counter() - asked)
        await asyncio.sleep(0.002)
    taken = time.perf_counter() - began
    return await commit, taken, longest


async def _teach(store: Store, record: StreamRecord, learnt: bytes) -> StreamRecord:
    async with store.staged(record.id, learnt) as blob:
        return await store.commit(record, state=b"state", step=record.step + 1, learnt=blob)


if __name__ == "__main__":
    asyncio.run(main())
