"""Which of an edge's images are worth sending, by what the model says of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from normstream.clients.edge.package import Floats


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


def select(logits: Floats, selector: Selector, criteria: Criteria) -> tuple[list[Verdict], Selector]:
    """Judge a batch by its logits, [B, C]; return a verdict for each image, and what is remembered after it.

    E < unreliable * ln C * scale * (mean entropy / mean entropy of the warm-up), E > uninformative * ln C, and
    |cos(p, mean p of what was sent)| < redundant, for entropy E and probabilities p of an image. The bound follows the
    batch before the batch is judged; of its images, none is compared with another.
    """
    finite = np.asarray(np.isfinite(logits).all(axis=1))
    probabilities = _softmax(np.where(finite[:, np.newaxis], logits, 0.0))  # [B, C]
    entropy = -np.sum(probabilities * np.log(np.maximum(probabilities, 1e-300)), axis=1)  # [B]
    selector = _follow(selector, entropy[finite], criteria)
    bound = upper_bound(selector, logits.shape[1], criteria)
    likeness = _likeness(probabilities, selector.sent)
    unreliable = ~finite | (entropy >= bound)
    uninformative = entropy <= criteria.uninformative * math.log(logits.shape[1])
    reasons = [_reason(*each) for each in zip(unreliable, uninformative, likeness >= criteria.redundant, strict=True)]
    # Within the bounds more entropy is more to learn, and unlike what was sent is new.
    scores = np.clip(entropy / max(bound, 1e-300), 0, 1) * (1 - np.clip(likeness, 0, 1))
    verdicts = [Verdict(reason, float(score)) for reason, score in zip(reasons, scores, strict=True)]
    return verdicts, _remember(selector, probabilities[[reason is None for reason in reasons]], criteria)


def upper_bound(selector: Selector, classes: int, criteria: Criteria) -> float:
    """Return the entropy, in nats, from which on an image is unreliable."""
    bound = criteria.unreliable * math.log(classes)
    if not selector.warm or selector.images <= criteria.warm_up:
        return bound
    return bound * criteria.scale * selector.entropy / selector.warm


def _softmax(logits: NDArray[np.float64] | Floats) -> NDArray[np.float64]:
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def _follow(selector: Selector, entropy: NDArray[np.float64], criteria: Criteria) -> Selector:
    """Take a batch's entropies into the mean."""
    if not len(entropy):
        return selector
    images = selector.images + len(entropy)
    weight = min(1.0, len(entropy) / min(images, criteria.horizon))
    mean = selector.entropy + weight * (float(entropy.mean()) - selector.entropy)
    warm = mean if selector.warm is None and images >= criteria.warm_up else selector.warm
    return Selector(images, mean, warm, selector.sent)


def _likeness(probabilities: NDArray[np.float64], sent: tuple[float, ...]) -> NDArray[np.float64]:
    """Return the cosine of each row with the mean of what was sent; 0 while nothing was."""
    if len(sent) != probabilities.shape[1]:
        return np.zeros(len(probabilities))
    mean = np.asarray(sent)
    norms = np.linalg.norm(probabilities, axis=1) * np.linalg.norm(mean)
    return np.asarray(probabilities @ mean / np.maximum(norms, 1e-8))


def _reason(unreliable: bool, uninformative: bool, redundant: bool) -> Reason | None:
    if unreliable:
        return Reason.UNRELIABLE
    if uninformative:
        return Reason.UNINFORMATIVE
    return Reason.REDUNDANT if redundant else None


def _remember(selector: Selector, kept: NDArray[np.float64], criteria: Criteria) -> Selector:
    """Take the probabilities of what is sent, [N, C], into their mean."""
    if not len(kept):
        return selector
    mean = kept.mean(axis=0)
    if len(selector.sent) == len(mean):
        mean = criteria.memory * np.asarray(selector.sent) + (1 - criteria.memory) * mean
    return Selector(selector.images, selector.entropy, selector.warm, tuple(mean.tolist()))
