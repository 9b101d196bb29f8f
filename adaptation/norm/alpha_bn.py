"""alpha-BN: a fixed mixture of the source's statistics and the batch's."""

from typing import Literal

from pydantic import Field

from ..member import NormMember, Tensors
from ..moments import Batch, Moments


class AlphaBN(NormMember):
    """Mix source and batch statistics with a fixed weight (You, Li and Zhao 2021, arXiv:2110.04065).

    `alpha` is the weight of the *test* batch; some codes give the weight of the source instead. Mean and variance are
    interpolated apart, as published: the term alpha (1 - alpha) (mu_B - mu_S)^2 of a true mixture is left out. The
    batch's variance is the unbiased one, n / (n - 1) with n values per channel, as in the published code; a single
    value per channel (one image, 1x1 map) has none, and the layer takes the source's statistics.
    """

    name: Literal["alpha_bn"] = "alpha_bn"
    alpha: float = Field(0.1, ge=0, le=1, description="weight of the batch's statistics; 0 is the source")

    def plan(self, source: Moments, batch: Batch, state: Tensors) -> tuple[Moments, Tensors]:
        """Mu = (1 - alpha) mu_S + alpha mu_B, and the variance likewise."""
        return source.mix(batch.unbiased(fallback=source), self.alpha), state
