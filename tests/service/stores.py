"""What the tests of the store begin with."""

import asyncio
from contextlib import AsyncExitStack, suppress

from normstream.service.storage.records import Conflict, Event, SnapshotRecord

STEP = Event("step", b'{"step": 1}')


async def create(store, stream_id="gate", *, state=b"source", **changes):
    known = {"model": "lite0", "fingerprint": "sha256:1", "recipe": '{"norm":{"name":"ema"}}'}
    return await store.create(stream_id, state=state, **{**known, **changes})


async def step(store, record, state=b"adapted", *, learnt=None, **rest):
    async with AsyncExitStack() as staging:
        if learnt is not None:
            learnt = await staging.enter_async_context(store.staged(record.id, learnt))
        return await store.commit(record, state=state, step=record.step + 1, learnt=learnt, **rest)


async def increment(store, stream_id="gate"):
    """What a worker does: load, compute, commit, and all over again on a conflict."""
    while True:
        record, _ = await store.load(stream_id)
        with suppress(Conflict):
            return await step(store, record, state=str(int(record.state) + 1).encode())


def snapshot(snapshot_id="snap-1", **changes):
    known = {"stream": "gate", "model": "lite0", "fingerprint": "sha256:1", "recipe": "{}", "step": 3}
    return SnapshotRecord(**{"id": snapshot_id, "state": b"kept", "created_at": 1.5, **known, **changes})


class Line:
    """A way to Redis. Once armed it delivers a script call, waits until that is done, and is cut."""

    def __init__(self, redis_url, path):
        self.upstream, self.path, self.url = redis_url.removeprefix("unix://"), path, f"unix://{path}"
        self.spared, self.doomed, self.cut = None, False, asyncio.Event()
        self.calls = set()

    def arm(self, spared=0):
        """Be cut in the next script call, or after so many that go through."""
        self.spared = spared
        self.cut.clear()

    async def __aenter__(self):
        self.server = await asyncio.start_unix_server(self.carry, self.path)
        return self

    async def __aexit__(self, *exc_info):
        self.server.close()
        for call in self.calls:
            call.cancel()
        await asyncio.gather(*self.calls, return_exceptions=True)

    async def carry(self, reader, writer):
        self.calls.add(asyncio.current_task())
        redis_reader, redis_writer = await asyncio.open_unix_connection(self.upstream)
        forth = asyncio.ensure_future(self.forth(reader, redis_writer))
        try:
            await self.back(redis_reader, writer)
        finally:
            forth.cancel()
            writer.close()
            redis_writer.close()

    async def forth(self, reader, redis_writer):
        while data := await reader.read(1 << 16):
            if self.spared is not None and b"EVALSHA" in data:
                self.doomed = self.spared == 0
                self.spared -= 1
            redis_writer.write(data)
        redis_writer.write_eof()

    async def back(self, redis_reader, writer):
        while data := await redis_reader.read(1 << 16):
            if self.doomed:
                self.spared, self.doomed = None, False
                self.cut.set()
                break
            writer.write(data)


class Traffic:
    """Counts what the server sends."""

    def __init__(self, redis):
        self.redis = redis
        self.seen = 0

    async def since(self):
        sent = (await self.redis.info("stats"))["total_net_output_bytes"]
        self.seen, before = sent, self.seen
        return sent - before
