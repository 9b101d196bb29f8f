"""The collapse guard: an update that goes wrong is discarded before it does harm.

Entropy minimisation can end in a model that answers one class with certainty whatever it sees. So each stream's answers
are watched through two running figures, and a step whose figures or values are out of bounds is not taken.
"""

import math
from enum import IntEnum

import torch
from pydantic import Field
from torch import Tensor

from .member import Frozen, Tensors


def finite(values: Tensor) -> bool:
    """Whether all values are finite: their extremes are, which a NaN reaches. `isfinite` is many times as slow."""
    return values.numel() == 0 or all(math.isfinite(extreme) for extreme in values.aminmax())


class Alarm(IntEnum):
    """What the guard saw. The names are those of answers and events, in lower case."""

    NONE = 0
    NON_FINITE = 1
    ENTROPY_COLLAPSE = 2
    DIVERSITY_COLLAPSE = 3


class Guard(Frozen):
    """When a step is discarded, and when a stream goes back to its last good parameters.

    Both floors are fractions of ln(classes), the largest entropy there is.
    """

    entropy_floor: float = Field(0.002, ge=0, lt=1, description="least mean entropy of the answers; 0 is off")
    diversity_floor: float = Field(0.05, ge=0, lt=1, description="least entropy of the mean answer; 0 is off")
    momentum: float = Field(0.01, gt=0, le=1, description="weight of one new image in both figures")
    patience: int = Field(5, ge=1, le=10_000, description="alarms in a row after which the last good state is back")

    def initial(self, affine: Tensor, classes: int) -> Tensors:
        """The guard's memory of one new stream, whose parameters are `affine`."""
        zero = torch.zeros((), dtype=torch.int64, device=affine.device)
        return {
            "entropy": torch.ones((), device=affine.device),
            "mean_answer": torch.full((classes,), 1 / classes, device=affine.device),
            "alarms": zero.clone(),  # so far
            "in_a_row": zero.clone(),
            "calm": zero.clone(),  # images since an alarm, or since `good` was last renewed
            "candidate": affine.clone(),
            "good": affine.clone(),
        }

    def watch(self, probs: Tensor, memory: Tensors) -> tuple[Alarm, Tensors]:
        """One stream's answers [B, classes] into its figures, and what they say."""
        if not finite(probs):
            return Alarm.NON_FINITE, memory
        if probs.shape[1] == 1:  # It is all there is to answer.
            return Alarm.NONE, memory
        scale = math.log(probs.shape[1])
        weight = 1 - (1 - self.momentum) ** len(probs)
        entropy = torch.lerp(memory["entropy"], torch.special.entr(probs).sum(1).mean() / scale, weight)
        mean_answer = torch.lerp(memory["mean_answer"], probs.mean(0), weight)
        alarm = Alarm.NONE
        if entropy < self.entropy_floor:
            alarm = Alarm.ENTROPY_COLLAPSE
        elif torch.special.entr(mean_answer).sum() / scale < self.diversity_floor:
            alarm = Alarm.DIVERSITY_COLLAPSE
        return alarm, memory | {"entropy": entropy, "mean_answer": mean_answer}

    def calm(self, memory: Tensors, images: int, affine: Tensor) -> Tensors:
        """The memory after a step that was taken; `affine` is what answers from here on.

        Parameters are good once the figures stayed calm for much longer than they look back: a collapse shows in them
        only after some hundred images, so those that just passed may be its beginning.
        """
        calm = memory["calm"] + images
        moved = memory | {"calm": calm, "in_a_row": torch.zeros_like(calm)}
        if calm < 10 / self.momentum:
            return moved
        return moved | {"calm": torch.zeros_like(calm), "good": memory["candidate"], "candidate": affine}

    def alarmed(self, memory: Tensors) -> Tensors:
        """The memory after a step that was discarded."""
        counted = {"alarms": memory["alarms"] + 1, "in_a_row": memory["in_a_row"] + 1}
        return memory | counted | {"calm": torch.zeros_like(memory["calm"]), "candidate": memory["good"]}
