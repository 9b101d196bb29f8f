"""BN: plain batch normalisation."""

from typing import Literal

from pydantic import Field
from torch import Tensor
from torch.nn import functional

from ..moments import Moments
from .layer_norms import Layer, LearningNorm, Learnt, Lesson, by_running, has_one_value


class BatchNorm(LearningNorm):
    """Normalise by the batch, predict by running statistics (Ioffe and Szegedy 2015, arXiv:1502.03167).

    As everywhere, the batch is normalised by its biased variance and the running statistics take the unbiased one:
    run += momentum (batch - run), or for a share s of a batch 1 - (1 - momentum)^s in momentum's place. A batch of one
    value per channel, which has no variance, is normalised by the running statistics and moves nothing.
    """

    name: Literal["bn"] = "bn"
    momentum: float = Field(0.1, gt=0, le=1, description="weight of a new batch in the running statistics")

    def learn(self, x: Tensor, layer: Layer, lesson: Lesson) -> Learnt:
        """Normalise by the batch's statistics, through which the gradient flows."""
        return by_batch(x, layer, lesson.rate(self.momentum))


def by_batch(x: Tensor, layer: Layer, momentum: float) -> Learnt:
    """Batch normalisation in training."""
    if has_one_value(x):
        return Learnt(by_running(x, layer), layer.running, x.new_zeros(()))
    running = Moments(*(each.clone() for each in layer.running))
    y = functional.batch_norm(
        x, running.mean, running.var, layer.weight, layer.bias, training=True, momentum=momentum, eps=layer.eps
    )
    return Learnt(y, running, x.new_zeros(()))
