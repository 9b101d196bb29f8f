"""Samples that a stream keeps to learn from again: compressed images in tensors of a fixed size.

The images lie one after the other, oldest first. What is too old goes; then, where bytes run out, the oldest.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .member import Tensors

LEAST_BYTES = 1024  # What an image counts as, at least; so many slots there are.


class Kept(NamedTuple):
    """A sample in the buffer."""

    image: bytes  # JPEG, WebP or PNG
    taken_at: float  # unix time, seconds


def initial(size: int, device: torch.device) -> Tensors:
    """An empty buffer of `size` bytes."""
    slots = size // LEAST_BYTES
    return {
        "images": torch.zeros(size, dtype=torch.uint8, device=device),
        "lengths": torch.zeros(slots, dtype=torch.int64, device=device),  # 0 where there is none
        "times": torch.zeros(slots, dtype=torch.float64, device=device),
    }


def damage(tensors: Tensors) -> str | None:
    """What is wrong with a buffer from elsewhere."""
    lengths = tensors["lengths"].tolist()
    if any(length < 0 for length in lengths) or sum(lengths) > len(tensors["images"]):
        return "its lengths are of more bytes than it has"
    filled = sum(length > 0 for length in lengths)
    return None if all(lengths[:filled]) else "it has empty places between images"


def unpacked(tensors: Tensors) -> list[Kept]:
    """The samples, oldest first."""
    lengths = [length for length in tensors["lengths"].tolist() if length]
    data, kept, start = tensors["images"].cpu().numpy().tobytes(), [], 0
    for length, taken_at in zip(lengths, tensors["times"].tolist(), strict=False):
        kept.append(Kept(data[start : start + length], taken_at))
        start += length
    return kept


def packed(samples: list[Kept], like: Tensors) -> Tensors:
    """The inverse of `unpacked`; `like` is a buffer of the same size."""
    size, slots = len(like["images"]), len(like["lengths"])
    data = b"".join(sample.image for sample in samples)
    lengths, times = [len(sample.image) for sample in samples], [sample.taken_at for sample in samples]
    empty = [0] * (slots - len(samples))
    images = torch.frombuffer(bytearray(data.ljust(size, b"\0")), dtype=torch.uint8) if size else like["images"].clone()
    return {
        "images": images.to(like["images"].device),
        "lengths": like["lengths"].new_tensor(lengths + empty),
        "times": like["times"].new_tensor(times + empty),
    }


def bounded(samples: list[Kept], size: int, oldest: float) -> list[Kept]:
    """Those that may stay, oldest first: taken at `oldest` or later, and the youngest that fit into `size` bytes."""
    staying: list[Kept] = []
    for sample in sorted(samples, key=lambda sample: sample.taken_at, reverse=True):
        size -= max(len(sample.image), LEAST_BYTES)
        if size < 0 or sample.taken_at < oldest:
            break
        staying.append(sample)
    return staying[::-1]


def drawn(samples: list[Kept], count: int, seed: int) -> list[Kept]:
    """At most `count` of the samples at random, none twice."""
    order: Tensor = torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed))
    return [samples[index] for index in order[:count].tolist()]
