"""What the streams answered, and what it amounts to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Observation:
    """What one recipe's stream answered to one batch.

    Attributes:
        recipe: The recipe.
        phase: The weather.
        agreed: Which frames got the class that the source model gives them in a clear view, `[B]`.
        entropy: Of each frame's prediction, in nats, `[B]`.
        seconds: From the request to the answer.
    """

    recipe: str
    phase: str
    agreed: NDArray[np.bool_]
    entropy: NDArray[np.float64]
    seconds: float


@dataclass(frozen=True, slots=True)
class Score:
    """Means over frames: the share that agreed, the entropy in nats, and the throughput."""

    agreement: float
    entropy: float
    images_per_s: float


@dataclass(slots=True)
class Results:
    """All observations, in order.

    Attributes:
        recipes: In the order of the table's rows.
        phases: In the order of time.
    """

    recipes: Sequence[str]
    phases: Sequence[str]
    _seen: list[Observation] = field(default_factory=list)

    def add(self, observation: Observation) -> None:
        """Take in one more."""
        self._seen.append(observation)

    def of(self, recipe: str, phase: str) -> list[Observation]:
        """What one recipe's stream answered in one phase."""
        return [seen for seen in self._seen if (seen.recipe, seen.phase) == (recipe, phase)]

    def score(self, recipe: str, phase: str) -> Score | None:
        """One recipe's means in one phase; None before its first answer."""
        seen = self.of(recipe, phase)
        if not seen:
            return None
        agreed = np.concatenate([one.agreed for one in seen])
        entropy = np.concatenate([one.entropy for one in seen])
        return Score(float(agreed.mean()), float(entropy.mean()), agreed.size / sum(one.seconds for one in seen))
