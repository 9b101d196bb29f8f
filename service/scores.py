"""How often a stream was right, by the labels that came: a value, and the bytes that the store keeps of it."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from types import MappingProxyType
from typing import Self

import numpy as np
from numpy.typing import NDArray

WINDOW = 1000
BINS = 15

_ENTRY = np.dtype([("confidence", "<f4"), ("correct", "?")])


@dataclass(frozen=True, slots=True)
class Judged:
    """A labelled image, and what the stream had answered for it."""

    label: str
    answer: str | None = None  # None where the stream knew no class yet
    confidence: float = 0.0  # of the answer


@dataclass(frozen=True, slots=True)
class Tally:
    """How many images of a class were labelled, how many of them had an answer, how many the right one."""

    labelled: int = 0
    scored: int = 0
    correct: int = 0

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(self.labelled + other.labelled, self.scored + other.scored, self.correct + other.correct)

    @property
    def accuracy(self) -> float | None:
        """The share of right answers; None without answers."""
        return self.correct / self.scored if self.scored else None


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """Of all labels of a stream, and the last answers more closely."""

    classes: Mapping[str, Tally] = field(default_factory=lambda: MappingProxyType({}))
    """By name, in the order in which they were first labelled."""
    window: NDArray[np.void] = field(default_factory=lambda: np.empty(0, _ENTRY))
    """Confidence and correctness of the last `WINDOW` answers, the oldest first."""

    def counting(self, judged: Iterable[Judged]) -> "Scores":
        """With more labels."""
        judged = list(judged)
        classes = dict(self.classes)
        for each in judged:
            scored, correct = each.answer is not None, each.answer == each.label
            classes[each.label] = classes.get(each.label, Tally()) + Tally(1, int(scored), int(correct))
        answered = [(each.confidence, each.answer == each.label) for each in judged if each.answer is not None]
        window = np.concatenate([self.window, np.array(answered, _ENTRY)])[-WINDOW:]
        return Scores(MappingProxyType(classes), window)

    @property
    def total(self) -> Tally:
        """Over all classes."""
        return reduce(Tally.__add__, self.classes.values(), Tally())

    @property
    def recent_accuracy(self) -> float | None:
        """The share of right answers in the window; None without answers."""
        return float(self.window["correct"].mean()) if len(self.window) else None

    @property
    def calibration_error(self) -> float | None:
        """Expected calibration error of the window over bins of equal width; None without answers.

        sum over bins of |right answers - summed confidence| / answers (Guo et al. 2017, arXiv:1706.04599).
        """
        if not len(self.window):
            return None
        confidence, correct = self.window["confidence"].astype(float), self.window["correct"].astype(float)
        bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
        gaps = np.bincount(bins, correct - confidence, BINS)
        return float(np.abs(gaps).sum() / len(self.window))

    def pack(self) -> bytes:
        """To bytes: a line of JSON with the classes, then the window."""
        classes = [[name, each.labelled, each.scored, each.correct] for name, each in self.classes.items()]
        return json.dumps(classes).encode() + b"\n" + self.window.tobytes()

    @classmethod
    def unpack(cls, packed: bytes) -> Self:
        """From bytes that `pack` made; no bytes are the scores of a stream that was never labelled."""
        if not packed:
            return cls()
        classes, _, window = packed.partition(b"\n")
        tallies = {name: Tally(*counts) for name, *counts in json.loads(classes)}
        return cls(MappingProxyType(tallies), np.frombuffer(window, _ENTRY))
