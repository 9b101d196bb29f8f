"""One hosted model at work: its thread, its scheduler, and what a batch does."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from normstream.adaptation import (
    HostedModel,
    Report,
    Request,
    Result,
    StreamState,
    class_names,
    drift,
    encode,
    labels,
    step,
)
from normstream.service.background import meanwhile
from normstream.service.images import refuse_overflow
from normstream.service.scheduler import Scheduler
from normstream.service.settings import Settings

Made = TypeVar("Made")


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """What a request gets: the predictions, and the state that its stream moves to."""

    logits: NDArray[np.float32]  # [B, classes]
    probs: NDArray[np.float32]  # [B, classes]
    entropy: NDArray[np.float32]  # [B], in nats
    features: Tensor | None  # what the head read, [B, D]; None where the model has no such head
    state: bytes  # encoded without what was learnt, which stays as it is; empty when the stream did not adapt
    step: int
    drift: dict[str, float]
    report: Report | None  # of the update slot


class Engine:
    """Serves one model, on the thread that works on tensors."""

    def __init__(self, hosted: HostedModel, thread: Executor, settings: Settings) -> None:
        self.hosted = hosted
        self.labels = labels(hosted)
        self._names = class_names(hosted)
        self._thread = thread
        self._scheduler: Scheduler[Request, Answer] = Scheduler(
            self._serve, thread, max_batch=settings.max_batch, max_wait_s=settings.max_wait_ms / 1000
        )

    async def step(self, request: Request) -> Answer:
        """One step of a stream, in some batch.

        Raises:
            Invalid: when the images' values overflow in the network.
        """
        return await self._scheduler.submit(request, size=len(request.images))

    async def do(self, work: Callable[..., Made], *arguments: object) -> Made:
        """Other work on tensors: `work(hosted, *arguments)`, on the same thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, self.hosted, *arguments)

    def names_of(self, state: StreamState) -> Sequence[str]:
        """Of a stream's classes, as labels call them; numbers, where the model's names are unknown."""
        return self._names if state.learnt is None else state.learnt.names

    def labels_of(self, state: StreamState) -> Sequence[str] | None:
        """The same as they are shown; None where they are unknown."""
        return self.labels if state.learnt is None else state.learnt.names

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Engine"]:
        """At work while the block lasts."""
        async with meanwhile(self._scheduler.run()):
            yield self

    def _serve(self, requests: Sequence[Request]) -> list[Answer | Exception]:
        """A batch, on the model's thread."""
        try:
            results = step(self.hosted, requests)
            return [_answer(result, request.adapt) for request, result in zip(requests, results, strict=True)]
        except Exception as error:
            if len(requests) == 1:
                return [error]
            # One bad request never fails another's: each once more, alone.
            return [answer for request in requests for answer in self._serve([request])]


def _answer(result: Result, adapted: bool) -> Answer | Exception:
    finite = result.logits.isfinite().all(dim=1)
    if not finite.all():
        return refuse_overflow(int(finite.int().argmin()))
    if not all(value.isfinite().all() for value in result.state.tensors.values()):
        return refuse_overflow(0)
    log_probs = torch.log_softmax(result.logits, dim=1)
    probs = log_probs.exp()
    return Answer(
        logits=result.logits.cpu().numpy(),
        probs=probs.cpu().numpy(),
        entropy=-(probs * log_probs).sum(dim=1).cpu().numpy(),
        features=None if result.features is None else result.features.cpu(),
        state=encode(replace(result.state, learnt=None)) if adapted else b"",
        step=result.state.step,
        drift=drift(result) if adapted else {},
        report=result.report,
    )
