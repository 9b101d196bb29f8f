"""What an edge says of an image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from normstream.clients.answers import ClassScore
from normstream.clients.edge.package import Floats


@dataclass(frozen=True, slots=True)
class EdgePrediction:
    """What the model sees in one image.

    Attributes:
        top: The likeliest classes.
        entropy: Of all classes' probabilities, in nats.
        version: The version of the parameters; None for those that the model came with.
        sample: The id under which the image is to be uploaded; None when it is not.
        excluded: Why it is not worth uploading; None when it is. (Where the model has no teacher, nothing is uploaded.)
    """

    top: tuple[ClassScore, ...]
    entropy: float
    version: str | None
    sample: str | None
    excluded: str | None

    def plain(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {
            "top": [
                {"class": each.index, "label": each.label, "probability": _number(each.probability)}
                for each in self.top
            ],
            "entropy": _number(self.entropy),
            "version": self.version,
            "sample": self.sample,
            "excluded": self.excluded,
        }


class Likelihoods(NamedTuple):
    """What a batch of logits says."""

    probabilities: NDArray[np.float64]  # [B, C]; of a row with NaN, NaN
    entropies: NDArray[np.float64]  # [B], in nats

    @classmethod
    def of(cls, logits: Floats) -> Self:
        """Read logits, [B, C]: p = exp(z) / sum exp(z) and H = log sum exp(z) - sum p z, for z = logits - max."""
        with np.errstate(invalid="ignore", divide="ignore"):
            shifted = np.subtract(logits, logits.max(axis=1, keepdims=True), dtype=np.float64)
            powers = np.exp(shifted)
            total = powers.sum(axis=1, keepdims=True)
            rows = powers / total
            return cls(rows, np.log(total[:, 0]) - np.einsum("bc,bc->b", rows, shifted))


def _number(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None


def likeliest(row: NDArray[np.float64], labels: Sequence[str] | None, count: int) -> tuple[ClassScore, ...]:
    """Return the likeliest classes by one row of probabilities; without labels they go by number."""
    count = min(count, len(row))
    best = np.argpartition(row, -count)[-count:]
    ordered = sorted(zip((-row[best]).tolist(), best.tolist(), strict=True))
    return tuple(ClassScore(i, labels[i] if labels else f"class {i}", -value) for value, i in ordered)
