"""What a way to normalise while learning is: a frozen value with pure functions of one layer's tensors."""

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ..member import Member, Need
from ..moments import Moments


class Lesson(NamedTuple):
    """What the layers know of the batch that they learn from."""

    tasks: Tensor  # number of each sample's task, [B]
    known: int  # tasks met so far
    batches: float  # learnt from before this one, by which running statistics are as old as they are
    share: float = 1.0  # of a whole batch that this one is, above 0 and at most 1

    def rate(self, whole: float) -> float:
        """The rate by which running statistics follow this lesson, where they follow a whole batch by `whole`.

        1 - (1 - whole)^share: as many lessons as make a whole batch leave as much of what was before as one of it.

        >>> tenth = Lesson(torch.zeros(1), 1, 0, 0.1)
        >>> round(1 - (1 - tenth.rate(0.4)) ** 10, 6)
        0.4
        """
        return whole if self.share == 1 else 1 - (1 - whole) ** self.share


class Layer(NamedTuple):
    """One layer's tensors."""

    weight: Tensor  # [C]
    bias: Tensor  # [C]
    running: Moments  # [C]
    task_weight: Tensor  # [known tasks]; [0] where the norm weighs no tasks
    eps: float


class Learnt(NamedTuple):
    """What a layer gives in a learning step."""

    y: Tensor  # [B, C, ...]
    running: Moments  # moved on; constants to the gradient
    loss: Tensor  # the layer's own, a scalar


class LearningNorm(Member):
    """How a batch normalisation's place is filled in a network that learns from labels."""

    needs: ClassVar[frozenset[Need]] = frozenset({Need.BATCH_NORM, Need.CLASSIFIER})
    weighs_tasks: ClassVar[bool] = False
    """True where a layer learns a weight for each task."""

    def learn(self, x: Tensor, layer: Layer, lesson: Lesson) -> Learnt:
        """Normalise a batch that is learnt from, [B, C] or [B, C, ...]."""
        raise NotImplementedError

    def predict(self, x: Tensor, layer: Layer) -> Tensor:
        """Normalise samples that are only answered: by the running statistics, unless the norm needs none."""
        return by_running(x, layer)

    def penalty(self, losses: Tensor, lesson: Lesson) -> Tensor:
        """The layers' losses, [layers], as a term of the training loss."""
        del lesson
        return torch.zeros_like(losses.sum())


def by_running(x: Tensor, layer: Layer) -> Tensor:
    """Batch normalisation in evaluation."""
    mean, var = layer.running
    return functional.batch_norm(x, mean, var, layer.weight, layer.bias, eps=layer.eps)


def has_one_value(x: Tensor) -> bool:
    """Whether a batch shows each channel once, and so has no variance."""
    return x.numel() == x.shape[1]
