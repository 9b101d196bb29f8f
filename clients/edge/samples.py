"""From crops that are worth sending to samples in the spool."""

from __future__ import annotations

import io
import queue
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from PIL import Image

from normstream.clients.edge.budget import TokenBucket
from normstream.clients.edge.preprocessing import Pixels
from normstream.clients.edge.spool import Spool, Waiting
from normstream.clients.edge.status import BUDGET, SPOOL, Counters

Format: TypeAlias = Literal["jpeg", "webp"]
QUEUED = 64


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A crop that is worth sending: uint8 `[H, W, 3]`, when it was taken, and how informative it is, from 0 to 1."""

    id: str
    crop: Pixels
    taken_at: float
    score: float


@dataclass(slots=True)
class Keeper:
    """Encodes candidates and puts those that the budget allows into the spool, beside the inference.

    Attributes:
        spool: Where they wait to be uploaded.
        budget: What may be kept to be sent.
        counters: Counts those that are not kept.
        format: "jpeg" or "webp".
        quality: Of the encoding, from 1 to 100.
        queue: The candidates that wait for their turn.
    """

    spool: Spool
    budget: TokenBucket
    counters: Counters
    format: Format = "jpeg"
    quality: int = 85
    queue: queue.Queue[Candidate] = field(default_factory=lambda: queue.Queue(QUEUED))
    _lost: int = 0  # candidates for which there was no place in the queue

    def offer(self, candidate: Candidate) -> None:
        """Take a candidate, at once; where the disk cannot keep up it is dropped."""
        try:
            self.queue.put_nowait(candidate)
        except queue.Full:
            self._lost += 1

    def keep(self, proceed: Callable[[], bool] = lambda: True) -> int:
        """Keep the candidates that wait, as long as it may proceed; return how many went into the spool."""
        kept = 0
        while proceed():
            try:
                candidate = self.queue.get_nowait()
            except queue.Empty:
                break
            image = encode(candidate.crop, self.format, self.quality)
            if self.budget.take(len(image), candidate.score, candidate.taken_at):
                self.spool.put(Waiting(candidate.id, image, candidate.taken_at), candidate.score)
                kept += 1
            else:
                self.counters.excluded[BUDGET] += 1
            self.queue.task_done()
        self.counters.excluded[SPOOL] = self._lost + self.spool.dropped
        return kept


def encode(crop: Pixels, image_format: Format, quality: int) -> bytes:
    """Encode a crop, uint8 `[H, W, 3]`."""
    buffer = io.BytesIO()
    Image.fromarray(crop).save(buffer, image_format, quality=quality)
    return buffer.getvalue()
