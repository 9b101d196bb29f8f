"""CN: group normalisation, then batch normalisation."""

from typing import Literal

from pydantic import Field
from torch import Tensor
from torch.nn import functional

from .batch_norm import by_batch
from .group_norm import groups_of
from .layer_norms import Layer, LearningNorm, Learnt, Lesson, by_running


class ContinualNorm(LearningNorm):
    """Normalise groups of a sample's channels, then by the batch (Pham et al. 2022, arXiv:2203.16102).

    Continual Normalization: y = BN(GN(x)), with one affine, BN's. The group normalisation takes out of each sample what
    its task gave it; the batch normalisation does the rest, and the running statistics are of what it sees.
    """

    name: Literal["cn"] = "cn"
    groups: int = Field(32, ge=1, description="at most; a layer takes the most that share its channels evenly")
    momentum: float = Field(0.1, gt=0, le=1, description="weight of a new batch in the running statistics")

    def learn(self, x: Tensor, layer: Layer, lesson: Lesson) -> Learnt:
        """Batch normalisation of what group normalisation gives."""
        return by_batch(self._grouped(x, layer), layer, lesson.rate(self.momentum))

    def predict(self, x: Tensor, layer: Layer) -> Tensor:
        """The same by the running statistics."""
        return by_running(self._grouped(x, layer), layer)

    def _grouped(self, x: Tensor, layer: Layer) -> Tensor:
        return functional.group_norm(x, groups_of(x.shape[1], self.groups), eps=layer.eps)
