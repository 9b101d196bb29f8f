"""What an edge says of an image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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


def _number(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None


def probabilities(logits: Floats) -> NDArray[np.float64]:
    """Return the softmax of each row; of a row with NaN or infinity, NaN."""
    with np.errstate(invalid="ignore"):
        powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def entropies(logits: Floats) -> NDArray[np.float64]:
    """Return the entropy of each row of logits, in nats."""
    return entropy(probabilities(logits))


def entropy(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the entropy of each row of probabilities, in nats."""
    return np.asarray(-np.sum(rows * np.log(np.maximum(rows, 1e-300)), axis=1))


def likeliest(row: NDArray[np.float64], labels: Sequence[str] | None, count: int) -> tuple[ClassScore, ...]:
    """Return the likeliest classes by one row of probabilities; without labels they go by number."""
    count = min(count, len(row))
    best = np.argpartition(-row, count - 1)[:count]
    best = best[np.argsort(-row[best], kind="stable")]
    return tuple(ClassScore(i, labels[i] if labels else f"class {i}", float(row[i])) for i in best.tolist())
