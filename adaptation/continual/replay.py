"""The memory of samples to learn again: which are kept, in how many bytes."""

from collections import Counter
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ..member import Frozen, Tensors
from .pixels import Encoding


class Drawn(NamedTuple):
    """Samples from the memory."""

    data: list[bytes]
    labels: Tensor  # [n]
    logits: Tensor  # as they were stored, [n, outputs]; [n, 0] where none are
    outputs: Tensor  # how many of its row each sample had, [n]; the others are 0


class Replay(Frozen):
    """How samples are remembered, in tensors and nothing else.

    `data` holds the samples' bytes one after another; `lengths`, `labels`, `outputs` [N] and `logits` [N, outputs] have
    a row for each. `seen` counts the samples ever offered, and `places` those that there is room for: `capacity`, until
    the bytes run out first. Randomness comes from the caller, who draws it from a seed and a count in the same state.
    Nothing is kept unless a recipe asks for it: images are what their sender may not want kept.
    """

    policy: Literal["reservoir", "ring"] = Field("reservoir", description="a uniform sample, or the newest per class")
    keep: Literal["nothing", "features", "images"] = Field(
        "nothing", description="what the head reads, which shows nobody a picture, or compressed images"
    )
    capacity: int = Field(500, ge=0, le=100_000, description="samples; 0 remembers nothing")
    max_bytes: int = Field(32 * 2**20, ge=0, le=2**30, description="of all samples together, with their logits")
    batch: int = Field(10, ge=1, le=4096, description="samples of each draw")
    encoding: Encoding = Field("jpeg", description="of images; png loses nothing and takes several times the bytes")

    def initial(self) -> Tensors:
        """An empty memory."""
        none = torch.zeros(0, dtype=torch.int64)
        return {
            "data": none.to(torch.uint8),
            "lengths": none,
            "labels": none,
            "outputs": none,
            "logits": torch.zeros(0, 0),
            "seen": torch.tensor(0),
            "places": torch.tensor(self.capacity),
        }

    def draw(self, memory: Tensors, rng: np.random.Generator) -> Drawn | None:
        """Up to `batch` different samples; None from an empty memory."""
        count = len(memory["lengths"])
        if not count:
            return None
        chosen = torch.from_numpy(rng.choice(count, min(self.batch, count), replace=False))
        ends = memory["lengths"].cumsum(0)
        data = memory["data"].numpy()
        pieces = [data[ends[i] - memory["lengths"][i] : ends[i]].tobytes() for i in chosen.tolist()]
        return Drawn(pieces, *(memory[name][chosen] for name in ("labels", "logits", "outputs")))

    def take(
        self, memory: Tensors, data: Sequence[bytes], labels: Tensor, logits: Tensor, rng: np.random.Generator
    ) -> Tensors:
        """The memory after it was offered samples.

        Args:
            memory: before.
            data: bytes of each sample.
            labels: [n].
            logits: to keep with the samples, [n, outputs], or [n, 0].
            rng: decides.
        """
        if self.keep == "nothing":
            return memory
        before = len(memory["lengths"])
        lengths = torch.cat([memory["lengths"], torch.tensor([len(each) for each in data])])
        labels = torch.cat([memory["labels"], labels.cpu()])
        stacked = _stacked(memory["logits"], logits.detach().cpu())
        sizes = (lengths + stacked.shape[1] * stacked.itemsize).tolist()
        shelf = _Shelf(sizes, labels.tolist(), self.max_bytes, list(range(before)), int(memory["places"]))
        for offset in range(len(data)):
            add = shelf.reservoir if self.policy == "reservoir" else shelf.ring
            add(before + offset, int(memory["seen"]) + offset, rng)
        if shelf.kept == list(range(before)):
            return memory | {"seen": memory["seen"] + len(data), "places": torch.tensor(shelf.places)}
        kept = torch.tensor(shelf.kept, dtype=torch.int64)
        new = [torch.frombuffer(bytearray(each), dtype=torch.uint8) for each in data]
        pieces = [*memory["data"].split(memory["lengths"].tolist()), *new]
        return {
            "data": torch.cat([memory["data"][:0], *(pieces[index] for index in shelf.kept)]),
            "lengths": lengths[kept],
            "labels": labels[kept],
            "outputs": torch.cat([memory["outputs"], torch.full((len(data),), logits.shape[1])])[kept],
            "logits": stacked[kept],
            "seen": memory["seen"] + len(data),
            "places": torch.tensor(shelf.places),
        }


def kept_bytes(memory: Tensors) -> int:
    """Bytes of what a memory keeps of samples, which `max_bytes` bounds: images or features, and logits."""
    return len(memory["data"]) + memory["logits"].nbytes


class _Shelf:
    """Which samples stay, by their numbers; both policies need no more than sizes, in bytes, and labels."""

    def __init__(self, sizes: list[int], labels: list[int], max_bytes: int, kept: list[int], places: int) -> None:
        self.sizes, self.labels, self.max_bytes = sizes, labels, max_bytes
        self.kept, self.places = kept, places
        # Outputs that are new widen every row of logits, so it may be too much before anything is added.
        self.bytes = sum(sizes[index] for index in kept)

    def reservoir(self, sample: int, seen: int, rng: np.random.Generator) -> None:
        """A uniform sample of all that came (Vitter 1985, algorithm R, doi:10.1145/3147.3165).

        Where bytes run out before places, samples go at random and their places with them, so that what stays is as
        uniform as before.
        """
        if self.sizes[sample] > self.max_bytes:
            return
        place = len(self.kept) if len(self.kept) < self.places else int(rng.integers(seen + 1))
        if place >= self.places:
            return
        self.bytes += self.sizes[sample]
        if place == len(self.kept):
            self.kept.append(sample)
        else:
            self.bytes -= self.sizes[self.kept[place]]
            self.kept[place] = sample
        while self.bytes > self.max_bytes:
            self._drop(int(rng.integers(len(self.kept))))
            self.places = max(1, len(self.kept))  # A row that has widened may be too large even alone.

    def ring(self, sample: int, seen: int, rng: np.random.Generator) -> None:
        """The newest samples of each class, all classes alike; the oldest of the largest class goes first."""
        del seen, rng
        if self.sizes[sample] > self.max_bytes:
            return
        self.kept.append(sample)
        self.bytes += self.sizes[sample]
        while len(self.kept) > self.places or self.bytes > self.max_bytes:
            counts = Counter(self.labels[index] for index in self.kept)
            largest = max(counts, key=lambda label: (counts[label], -label))
            self._drop(next(place for place, index in enumerate(self.kept) if self.labels[index] == largest))

    def _drop(self, place: int) -> None:
        self.bytes -= self.sizes[self.kept.pop(place)]


def _stacked(old: Tensor, new: Tensor) -> Tensor:
    """Rows of logits below one another, those of fewer outputs filled up with 0."""
    width = max(old.shape[1], new.shape[1])
    return torch.cat([torch.nn.functional.pad(rows, (0, width - rows.shape[1])) for rows in (old, new)])
