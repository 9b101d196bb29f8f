"""CIFAR-10 as files of images and the names of what they show."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeAlias
from zipfile import BadZipFile

import numpy as np

from normstream.clients.errors import NormstreamError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
Pair: TypeAlias = tuple[str, str]
PAIRS: tuple[Pair, ...] = tuple(zip(CLASSES[::2], CLASSES[1::2], strict=True))


class DataError(NormstreamError):
    """There are no such images as the example needs."""


@dataclass(frozen=True, slots=True)
class Pictures:
    """Images of two classes, in a random order.

    Attributes:
        files: Their contents, JPEG.
        classes: What each of them shows.
    """

    files: tuple[bytes, ...]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.files)

    def batches(self, size: int) -> Iterator[Self]:
        """Yield them in order; the last batch may be smaller."""
        for start in range(0, len(self), size):
            rows = slice(start, start + size)
            yield type(self)(self.files[rows], self.classes[rows])


def read(path: Path, count: int | None = None) -> list[Pictures]:
    """Read the pictures of each pair.

    Args:
        path: An npz with `jpeg`, the bytes of all files in a row; `offsets`, where each begins and the last one ends;
            and `labels`, the number of each image's class.
        count: How many of each pair; all if None.

    Raises:
        DataError: There is no such file, or no image of some pair.
    """
    try:
        with path.open("rb") as file, np.load(file) as arrays:
            content, offsets, labels = arrays["jpeg"].tobytes(), arrays["offsets"], arrays["labels"]
    except (OSError, EOFError, BadZipFile, KeyError, TypeError, ValueError) as error:
        raise DataError(f"cannot read {path}: {error}; give the folder of CIFAR-10's train.npz and test.npz") from error
    order = np.random.default_rng(0).permutation(len(labels))
    found = []
    for number, pair in enumerate(PAIRS):
        rows = order[labels[order] // 2 == number][:count].tolist()
        if not rows:
            raise DataError(
                f"{path} has no image of {' or '.join(pair)}, the classes {2 * number} and {2 * number + 1}"
            )
        files = tuple(content[offsets[row] : offsets[row + 1]] for row in rows)
        found.append(Pictures(files, tuple(CLASSES[labels[row]] for row in rows)))
    return found
