"""Batches across streams: requests that wait together share one forward pass."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Work = TypeVar("Work")
Outcome = TypeVar("Outcome")


@dataclass(slots=True, eq=False)
class Job(Generic[Work, Outcome]):
    """Something to do, its size, and where the outcome goes."""

    work: Work
    size: int
    outcome: "asyncio.Future[Outcome]"
    since: float = field(default=0.0)


class Scheduler(Generic[Work, Outcome]):
    """Runs work in batches, on a thread of its own, in the order it came.

    While one batch runs, what arrives waits, and goes together in the next: batches form by themselves under load, and
    a request that finds the model idle waits for nobody unless `max_wait_s` says so. Whoever submits sees to it that
    two jobs which depend on each other are never here at the same time.

    Args:
        run: does a batch; gives an outcome, or an exception, for each job.
        thread: where `run` runs; one thread, for the model is not to be run twice at a time.
        max_batch: most of the summed sizes in one batch; a single larger job still goes, alone.
        max_wait_s: how long the first job of a batch may wait for others.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Work]], Sequence[Outcome | Exception]],
        thread: Executor,
        *,
        max_batch: int,
        max_wait_s: float,
    ) -> None:
        self._run_batch = run
        self._thread = thread
        self._max_batch = max_batch
        self._max_wait_s = max_wait_s
        self._jobs: deque[Job[Work, Outcome]] = deque()
        self._arrival = asyncio.Event()

    async def submit(self, work: Work, size: int) -> Outcome:
        """Do `work` in some batch; if the caller is cancelled before it begins, it is dropped."""
        loop = asyncio.get_running_loop()
        job: Job[Work, Outcome] = Job(work, size, loop.create_future(), loop.time())
        self._jobs.append(job)
        self._arrival.set()
        return await job.outcome

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            await self._company()
            if batch := self._take():
                await self._serve(batch)

    async def _company(self) -> None:
        """Wait for a first job, and for others to join it if they may."""
        while not self._jobs:
            self._arrival.clear()
            await self._arrival.wait()
        deadline = self._jobs[0].since + self._max_wait_s
        loop = asyncio.get_running_loop()
        while (left := deadline - loop.time()) > 0 and sum(job.size for job in self._jobs) < self._max_batch:
            self._arrival.clear()
            try:
                async with asyncio.timeout(left):
                    await self._arrival.wait()
            except TimeoutError:
                return

    def _take(self) -> list[Job[Work, Outcome]]:
        """The jobs of the next batch, from the front; those whose callers have gone are dropped."""
        batch: list[Job[Work, Outcome]] = []
        total = 0
        while self._jobs and (not batch or total + self._jobs[0].size <= self._max_batch):
            job = self._jobs.popleft()
            if not job.outcome.done():
                batch.append(job)
                total += job.size
        return batch

    async def _serve(self, batch: list[Job[Work, Outcome]]) -> None:
        loop = asyncio.get_running_loop()
        outcomes: Sequence[Outcome | Exception]
        try:
            outcomes = await loop.run_in_executor(self._thread, self._run_batch, [job.work for job in batch])
        except Exception as error:
            # `run` answers for each job. Should it break down as a whole, its batch fails, but no later one.
            outcomes = [error] * len(batch)
        for job, outcome in zip(batch, outcomes, strict=True):
            if job.outcome.done():
                continue
            if isinstance(outcome, Exception):
                job.outcome.set_exception(outcome)
            else:
                job.outcome.set_result(outcome)
