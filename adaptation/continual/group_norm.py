"""GN: group normalisation."""

from typing import Literal

from pydantic import Field
from torch import Tensor
from torch.nn import functional

from .layer_norms import Layer, LearningNorm, Learnt, Lesson


class GroupNorm(LearningNorm):
    """Normalise each sample over groups of its channels (Wu and He 2018, arXiv:1803.08494).

    No statistics of a batch, and so none to forget; in a network that was trained with batch normalisation it starts
    from features that the network has never seen.
    """

    name: Literal["gn"] = "gn"
    groups: int = Field(32, ge=1, description="at most; a layer takes the most that share its channels evenly")

    def learn(self, x: Tensor, layer: Layer, lesson: Lesson) -> Learnt:
        """The same as in prediction."""
        del lesson
        return Learnt(self.predict(x, layer), layer.running, x.new_zeros(()))

    def predict(self, x: Tensor, layer: Layer) -> Tensor:
        """Each sample by itself."""
        return functional.group_norm(x, groups_of(x.shape[1], self.groups), layer.weight, layer.bias, layer.eps)


def groups_of(channels: int, most: int) -> int:
    """The largest number of equal groups, `most` or fewer, each of two channels or more.

    >>> groups_of(64, 32), groups_of(24, 32), groups_of(7, 4)
    (32, 12, 1)
    """
    return next((groups for groups in range(min(most, channels // 2), 0, -1) if channels % groups == 0), 1)
