"""The scheduler: batches in the order of arrival, nothing lost, nobody harmed by a neighbour."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from normstream.service.scheduler import Scheduler


class Worker:
    """Doubles numbers on a real thread, remembers its batches, and can be held up."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.began, self.go = threading.Event(), threading.Event()
        self.go.set()

    def hold(self) -> None:
        self.began.clear()
        self.go.clear()

    def __call__(self, works: Sequence[int]) -> list[Any]:
        self.batches.append(list(works))
        self.began.set()
        assert self.go.wait(10)
        return [ValueError(f"{work} is negative") if work < 0 else 2 * work for work in works]


@asynccontextmanager
async def running(
    run: Callable[[Sequence[int]], list[Any]], max_batch: int = 8, max_wait_s: float = 0.0
) -> AsyncIterator[Scheduler[int, int]]:
    with ThreadPoolExecutor(1) as thread:
        scheduler = Scheduler(run, thread, max_batch=max_batch, max_wait_s=max_wait_s)
        task = asyncio.create_task(scheduler.run())
        try:
            yield scheduler
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


async def held(scheduler: Scheduler[int, int], worker: Worker) -> "asyncio.Task[int]":
    """A job that is being done until the worker may go on."""
    worker.hold()
    job = asyncio.create_task(scheduler.submit(0, 1))
    assert await asyncio.to_thread(worker.began.wait, 10)
    return job


def submitted(scheduler: Scheduler[int, int], works: Sequence[int], sizes: Sequence[int]) -> list["asyncio.Task[int]"]:
    return [asyncio.create_task(scheduler.submit(work, size)) for work, size in zip(works, sizes, strict=True)]


@given(sizes=st.lists(st.integers(1, 12), min_size=1, max_size=30), max_batch=st.integers(1, 10))
@settings(max_examples=50, deadline=None)
def test_all_is_done_once_in_order_in_batches_as_large_as_may_be(sizes: list[int], max_batch: int) -> None:
    worker, works = Worker(), list(range(1, len(sizes) + 1))

    async def work() -> list[int]:
        async with running(worker, max_batch) as scheduler:
            first = await held(scheduler, worker)
            jobs = submitted(scheduler, works, sizes)
            await asyncio.sleep(0)  # lets each of them reach the queue
            worker.go.set()
            assert await first == 0
            return await asyncio.gather(*jobs)

    assert asyncio.run(work()) == [2 * work for work in works]
    assert [work for batch in worker.batches[1:] for work in batch] == works
    size = dict(zip(works, sizes, strict=True))
    for batch, following in zip(worker.batches[1:], [*worker.batches[2:], None], strict=True):
        total = sum(size[work] for work in batch)
        assert total <= max_batch or len(batch) == 1
        assert following is None or total + size[following[0]] > max_batch


@given(gone=st.lists(st.booleans(), min_size=1, max_size=20))
@settings(max_examples=30, deadline=None)
def test_whoever_has_gone_is_dropped_and_nobody_else(gone: list[bool]) -> None:
    worker, works = Worker(), list(range(1, len(gone) + 1))

    async def work() -> list[Any]:
        async with running(worker) as scheduler:
            first = await held(scheduler, worker)
            jobs = submitted(scheduler, works, [1] * len(works))
            await asyncio.sleep(0)
            for job, left in zip(jobs, gone, strict=True):
                if left:
                    job.cancel()
            await asyncio.sleep(0)
            worker.go.set()
            await first
            return await asyncio.gather(*jobs, return_exceptions=True)

    outcomes = asyncio.run(work())
    assert [isinstance(outcome, asyncio.CancelledError) for outcome in outcomes] == gone
    staying = [work for work, left in zip(works, gone, strict=True) if not left]
    assert [outcome for outcome, left in zip(outcomes, gone, strict=True) if not left] == [2 * work for work in staying]
    assert [work for batch in worker.batches[1:] for work in batch] == staying


@given(works=st.lists(st.integers(-5, 5).filter(bool), min_size=1, max_size=20))
@settings(max_examples=30, deadline=None)
def test_a_job_that_fails_fails_alone(works: list[int]) -> None:
    async def work() -> list[Any]:
        async with running(Worker()) as scheduler:
            return await asyncio.gather(*submitted(scheduler, works, [1] * len(works)), return_exceptions=True)

    for each, outcome in zip(works, asyncio.run(work()), strict=True):
        assert str(outcome) == f"{each} is negative" if each < 0 else outcome == 2 * each


async def test_a_job_that_leaves_while_it_is_done_disturbs_nobody() -> None:
    worker = Worker()
    async with running(worker) as scheduler:
        first = await held(scheduler, worker)
        (second,) = submitted(scheduler, [1], [1])
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        worker.go.set()
        assert await second == 2
        assert await scheduler.submit(3, 1) == 6


async def test_an_idle_scheduler_waits_for_nobody() -> None:
    worker = Worker()
    async with running(worker) as scheduler:
        for work in range(5):
            assert await scheduler.submit(work, 1) == 2 * work
    assert worker.batches == [[0], [1], [2], [3], [4]]


async def test_a_first_job_waits_for_company_until_the_batch_is_full() -> None:
    worker = Worker()
    async with running(worker, max_batch=4, max_wait_s=60) as scheduler:
        jobs = submitted(scheduler, [1, 2], [1, 2])
        for _ in range(20):
            await asyncio.sleep(0)
        assert worker.batches == []
        jobs += submitted(scheduler, [3], [1])
        assert await asyncio.gather(*jobs) == [2, 4, 6]
    assert worker.batches == [[1, 2, 3]]


async def test_or_for_as_long_as_it_may() -> None:
    worker = Worker()
    async with running(worker, max_wait_s=0.05) as scheduler:
        assert await asyncio.wait_for(scheduler.submit(1, 1), 5) == 2


async def test_a_larger_job_than_a_batch_goes_alone() -> None:
    worker = Worker()
    async with running(worker, max_batch=2, max_wait_s=0.05) as scheduler:
        assert await asyncio.gather(*submitted(scheduler, [1, 2, 3], [1, 5, 1])) == [2, 4, 6]
    assert worker.batches == [[1], [2], [3]]


async def test_a_batch_that_breaks_down_fails_its_own_jobs_and_no_later_ones() -> None:
    """The engine's function answers for each job; should it raise after all, the model must not fall silent."""

    def run(works: Sequence[int]) -> list[Any]:
        if 13 in works:
            raise MemoryError("no memory left")
        return list(works)

    async with running(run) as scheduler:
        with pytest.raises(MemoryError, match="no memory left"):
            await asyncio.wait_for(scheduler.submit(13, 1), 5)
        assert await asyncio.wait_for(scheduler.submit(1, 1), 5) == 1
