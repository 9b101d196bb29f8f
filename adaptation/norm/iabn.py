"""IABN: running statistics, corrected for an instance that is far from them."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from ..member import NormMember, Tensors
from ..moments import Batch, Moments, pool
from ..rates import weight_of


class IABN(NormMember):
    """Correct the running statistics where a sample's own are surprising (NOTE: Gong et al. 2022, arXiv:2208.05117).

    A sample's mean and variance over its L positions scatter about the running ones with standard errors
    sqrt((var + eps) / L) and (var + eps) sqrt(2 / (L - 1)). What differs by less than k of them is taken for chance and
    ignored; of what differs by more the rest is added. All variances are unbiased as published. A sample with a single
    position has none, and the layer takes the running statistics. An answer does not depend on the other samples of
    its batch.

    NOTE trains the source model with these layers. A model trained with plain batch normalisation has never seen them,
    and may lose from them even on its own data: compare with `source` first. Ours is how the running statistics move:
    NOTE sets them from a memory of 64 images balanced over predicted classes, once in 64 images; we keep no images,
    and every batch moves them after it was answered, at the rate of its number of images.
    """

    name: Literal["iabn"] = "iabn"
    k: float = Field(4.0, ge=0, le=100, description="standard errors that are taken for chance")
    momentum: float = Field(0.01, gt=0, le=1, description="weight of 64 new images in the running statistics")

    per_sample: ClassVar[bool] = True

    def initial(self, source: Moments) -> Tensors:
        """Start at the source."""
        return {"mean": source.mean.clone(), "var": source.var.clone()}

    def plan(self, source: Moments, batch: Batch, state: Tensors) -> tuple[Moments, Tensors]:
        """Correct each sample's statistics; then move its stream's."""
        del source  # It is in the running statistics from the start.
        running = Moments(state["mean"], state["var"])
        rate = batch.per_stream([weight_of(n, self.momentum) for n in batch.images])
        mean, var = running.mix(_pooled(batch).unbiased(fallback=running), rate)
        images = torch.tensor(batch.images, device=running.mean.device)
        each = Moments(*(rows.repeat_interleave(images, dim=0) for rows in running))
        return self._corrected(each, batch), {"mean": mean, "var": var}

    def standing(self, source: Moments, state: Tensors) -> Moments:
        """The running ones, which no sample corrects."""
        del source
        return Moments(state["mean"], state["var"])

    def _corrected(self, running: Moments, batch: Batch) -> Moments:
        """Of every sample, [B, C]."""
        count = batch.positions
        if count < 2:
            return running
        square = running.var + batch.eps
        mean_error, var_error = (square / count).sqrt(), square * (2 / (count - 1)) ** 0.5
        var = batch.moments.var * (count / (count - 1))
        return Moments(
            running.mean + _beyond(batch.moments.mean - running.mean, self.k * mean_error),
            (running.var + _beyond(var - running.var, self.k * var_error)).relu(),
        )


def _pooled(batch: Batch) -> Batch:
    """The streams' batches, of which the statistics move: constants, with a row for each stream."""
    samples = Moments(batch.moments.mean.detach(), batch.moments.var.detach())
    return batch._replace(moments=pool(samples, batch.images))


def _beyond(difference: Tensor, bound: Tensor) -> Tensor:
    """Soft threshold: sign(x) max(|x| - t, 0)."""
    return difference.sign() * (difference.abs() - bound).relu()
