"""The thread that works on tensors."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

import torch

from normstream.service.tuning import give_memory_back

_IDLE_S = 30.0  # longer than between the lessons of edges that are being taught

Given = ParamSpec("Given")
Made = TypeVar("Made")


class TensorThread(ThreadPoolExecutor):
    """The one thread of this process that works on large tensors, for all models.

    Each thread that runs a parallel operation of torch gets a team of OpenMP threads of its own. As soon as the teams
    have more threads than there are cores, GNU's OpenMP stops spinning at barriers and sleeps at each, in every team,
    which doubles the time of a small network (docs/performance.md). So nothing else here may run such operations.
    """

    def __init__(self, cores: int) -> None:
        super().__init__(1, "tensors", initializer=torch.set_num_threads, initargs=(cores,))
        self._submitted = 0

    def submit(self, work: Callable[Given, Made], /, *args: Given.args, **kwargs: Given.kwargs) -> "Future[Made]":
        """Do some work, after all that was submitted before."""
        self._submitted += 1
        return super().submit(work, *args, **kwargs)

    async def tidy(self) -> None:
        """Give memory back when there has been nothing to do for a while; until cancelled."""
        tidied = self._submitted
        while True:
            before = self._submitted
            await asyncio.sleep(_IDLE_S)
            if self._submitted == before != tidied:
                tidying = self.submit(give_memory_back)
                tidied = self._submitted  # What comes from here on is tidied up after another time.
                await asyncio.wrap_future(tidying)
