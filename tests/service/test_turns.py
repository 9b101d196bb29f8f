"""Turns: requests of one stream go in the order of their tickets, whatever becomes of those before them."""

import asyncio
from enum import Enum

from hypothesis import given
from hypothesis import strategies as st

from normstream.service.turns import Turns


class Fate(Enum):
    """What becomes of a request."""

    ACTS = "awaits its turn and acts"
    FAILS = "acts and fails"
    LEAVES = "leaves without having awaited its turn"
    CANCELLED = "is cancelled"


Request = tuple[str, Fate, int]  # its stream, what becomes of it, how much it does before and after its turn


async def served(turns: Turns, requests: list[Request]) -> tuple[dict[str, list[int]], int]:
    """Who acted on each stream, in order, and how many acted on one at a time at most."""
    acted: dict[str, list[int]] = {}
    inside: dict[str, int] = {}
    most = 0

    async def serve(index: int, stream: str, fate: Fate, pauses: int) -> None:
        nonlocal most
        async with turns.ticket(stream) as turn:
            await paused(pauses)
            if fate is Fate.LEAVES:
                return
            await turn()
            inside[stream] = inside.get(stream, 0) + 1
            most = max(most, inside[stream])
            acted.setdefault(stream, []).append(index)
            try:
                await paused(pauses)
            finally:
                inside[stream] -= 1
            if fate is Fate.FAILS:
                raise ValueError

    tasks = [asyncio.create_task(serve(index, *request)) for index, request in enumerate(requests)]
    await asyncio.sleep(0)
    for task, (_, fate, pauses) in zip(tasks, requests, strict=True):
        if fate is Fate.CANCELLED:
            await paused(pauses)
            task.cancel()
    await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
    return acted, most


async def paused(times: int) -> None:
    for _ in range(times):
        await asyncio.sleep(0)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(Fate), st.integers(0, 4)), min_size=1, max_size=12))
def test_a_stream_s_requests_act_one_at_a_time_in_the_order_of_their_tickets(requests: list[Request]) -> None:
    turns = Turns()
    acted, most = asyncio.run(served(turns, requests))
    assert most <= 1
    for stream, indices in acted.items():
        assert indices == sorted(indices)
        must = {n for n, (of, fate, _) in enumerate(requests) if of == stream and fate in {Fate.ACTS, Fate.FAILS}}
        assert must <= set(indices)
    assert not turns._last  # nothing is kept of streams without requests


async def test_streams_do_not_wait_for_each_other() -> None:
    turns = Turns()
    async with turns.ticket("a") as first:
        await first()
        async with turns.ticket("b") as other:
            await asyncio.wait_for(other(), 5)


async def test_who_leaves_before_its_turn_does_not_let_the_next_one_overtake() -> None:
    turns = Turns()
    async with turns.ticket("a") as first:
        await first()
        async with turns.ticket("a"):
            pass  # leaves at once
        async with turns.ticket("a") as third:
            waiting = asyncio.ensure_future(third())
            await paused(10)
            assert not waiting.done()
            waiting.cancel()
