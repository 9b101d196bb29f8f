"""Which of an edge's images are worth sending, by what the model says of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from normstream.clients.edge.prediction import Likelihoods


class Reason(StrEnum):
    """Why an image is not sent."""

    UNRELIABLE = "unreliable"  # its entropy is above the bound: what the model says is noise
    UNINFORMATIVE = "uninformative"  # its entropy is next to nothing: there is nothing to learn
    REDUNDANT = "redundant"  # the model says of it what it said of those sent already


@dataclass(frozen=True, slots=True)
class Criteria:
    """The bounds of sample exclusion in CEMA (Chen et al., ICLR 2024); entropies are in parts of ln(classes).

    Attributes:
        unreliable: The upper bound of the entropy, at first.
        uninformative: The lower bound of the entropy; 0 excludes none.
        redundant: The bound of the cosine similarity with the mean probabilities of what was sent; 1 excludes none.
        memory: The weight of the old in that mean.
        scale: The upper bound is multiplied by this once it follows the entropy.
        warm_up: The images whose mean entropy is what later entropy is compared with.
        horizon: The mean entropy is that of about the last so many images, so that it follows for ever.
    """

    unreliable: float = 0.4
    uninformative: float = 0.02
    redundant: float = 0.05
    memory: float = 0.9
    scale: float = 1.0
    warm_up: int = 32
    horizon: int = 10_000

    def __post_init__(self) -> None:
        for name in ("unreliable", "redundant", "scale"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; give a number above 0")
        for name in ("uninformative", "memory"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give a number from 0 to below 1")
        if not 1 <= self.warm_up <= self.horizon:
            raise ValueError(f"warm_up is {self.warm_up} and horizon {self.horizon}; give 1 <= warm_up <= horizon")


@dataclass(frozen=True, slots=True)
class Selector:
    """What the selection remembers; `dataclasses.asdict` makes JSON of it, and `Selector(**...)` brings it back.

    Attributes:
        images: How many have been looked at.
        entropy: Their mean entropy, in nats.
        warm: The mean entropy when the warm-up was over; None before.
        sent: The running mean of the probabilities of what was sent, [C]; empty before.
    """

    images: int = 0
    entropy: float = 0.0
    warm: float | None = None
    sent: tuple[float, ...] = ()


class Verdict(NamedTuple):
    """What becomes of one image."""

    reason: Reason | None  # None: it is worth sending
    score: float  # how informative it is, from 0 to 1; of those worth sending the higher ones go first


def select(said: Likelihoods, selector: Selector, criteria: Criteria) -> tuple[list[Verdict], Selector]:
    """Judge a batch by what the model says of it; return a verdict for each image, and what is remembered after it.

    E < unreliable * ln C * scale * (mean entropy / mean entropy of the warm-up), E > uninformative * ln C, and
    |cos(p, mean p of what was sent)| < redundant, for entropy E and probabilities p of an image. The bound follows the
    batch before the batch is judged; of its images, none is compared with another.
    """
    probabilities, entropies = said.probabilities, said.entropies.tolist()
    classes = probabilities.shape[1]
    selector = _follow(selector, [each for each in entropies if math.isfinite(each)], criteria)
    bound, least = upper_bound(selector, classes, criteria), criteria.uninformative * math.log(classes)
    verdicts = [
        _verdict(entropy, likeness, least, bound, criteria)
        for entropy, likeness in zip(entropies, _likeness(probabilities, selector.sent), strict=True)
    ]
    sent = [row for row, verdict in enumerate(verdicts) if verdict.reason is None]
    return verdicts, _remember(selector, probabilities[sent], criteria) if sent else selector


def upper_bound(selector: Selector, classes: int, criteria: Criteria) -> float:
    """Return the entropy, in nats, from which on an image is unreliable."""
    bound = criteria.unreliable * math.log(classes)
    if not selector.warm or selector.images <= criteria.warm_up:
        return bound
    return bound * criteria.scale * selector.entropy / selector.warm


def _follow(selector: Selector, entropies: list[float], criteria: Criteria) -> Selector:
    """Take a batch's entropies into the mean."""
    if not entropies:
        return selector
    images = selector.images + len(entropies)
    weight = min(1.0, len(entropies) / min(images, criteria.horizon))
    mean = selector.entropy + weight * (math.fsum(entropies) / len(entropies) - selector.entropy)
    warm = mean if selector.warm is None and images >= criteria.warm_up else selector.warm
    return Selector(images, mean, warm, selector.sent)


def _likeness(probabilities: NDArray[np.float64], sent: tuple[float, ...]) -> list[float]:
    """Return the cosine of each row with the mean of what was sent; 0 while nothing was."""
    if len(sent) != probabilities.shape[1]:
        return [0.0] * len(probabilities)
    mean = np.asarray(sent)
    norms = np.linalg.norm(probabilities, axis=1) * np.linalg.norm(mean)
    likeness: list[float] = (probabilities @ mean / np.maximum(norms, 1e-8)).tolist()
    return likeness


def _verdict(entropy: float, likeness: float, least: float, bound: float, criteria: Criteria) -> Verdict:
    # Within the bounds more entropy is more to learn, and unlike what was sent is new.
    score = _clipped(entropy / max(bound, 1e-300)) * (1 - _clipped(likeness))
    if not entropy < bound:  # NaN is not
        return Verdict(Reason.UNRELIABLE, score)
    if entropy <= least:
        return Verdict(Reason.UNINFORMATIVE, score)
    return Verdict(Reason.REDUNDANT if likeness >= criteria.redundant else None, score)


def _clipped(value: float) -> float:
    """Return a number as one from 0 to 1; NaN as 0."""
    return min(1.0, max(0.0, value))


def _remember(selector: Selector, kept: NDArray[np.float64], criteria: Criteria) -> Selector:
    """Take the probabilities of what is sent, [N, C], into their mean."""
    mean = kept.mean(axis=0)
    if len(selector.sent) == len(mean):
        mean = criteria.memory * np.asarray(selector.sent) + (1 - criteria.memory) * mean
    return Selector(selector.images, selector.entropy, selector.warm, tuple(mean.tolist()))
