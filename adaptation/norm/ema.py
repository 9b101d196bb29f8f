"""EMA-BN: alpha-BN with a memory."""

from typing import Literal

from pydantic import Field

from ..member import NormMember, Tensors
from ..moments import Batch, Moments


class EMA(NormMember):
    """Mix source statistics with each stream's running statistics, which start at the source.

    The running statistics take in the batch before they are used, as in RobustBN (Yuan, Xie and Li 2023, RoTTA,
    arXiv:2303.13899), and are then interpolated with the source as in alpha-BN (arXiv:2110.04065). Two
    things are ours: the rate is per *image*, so that a stream adapts alike whether its images come one by one or
    together; and the running variance keeps the between-batch term (Chan et al. 1983), so that single images with
    little variance of their own still add up to that of their mixture. The variance is biased. It needs no batch, and
    is the choice for streams that send one or a few images at a time.
    """

    name: Literal["ema"] = "ema"
    momentum: float = Field(0.0125, gt=0, le=1, description="weight of one new image in the running statistics")
    alpha: float = Field(0.2, ge=0, le=1, description="weight of the running statistics; 0 is the source")

    def initial(self, source: Moments) -> Tensors:
        """Start at the source: the first answer is the trained model's but for one small step."""
        return {"mean": source.mean.clone(), "var": source.var.clone()}

    def plan(self, source: Moments, batch: Batch, state: Tensors) -> tuple[Moments, Tensors]:
        """Merge the batch into the running statistics with weight 1 - (1 - momentum)^n, then mix with the source."""
        weight = batch.per_stream([1 - (1 - self.momentum) ** n for n in batch.images])
        running = Moments(state["mean"], state["var"]).merge(batch.moments, weight)
        return source.mix(running, self.alpha), {"mean": running.mean, "var": running.var}

    def standing(self, source: Moments, state: Tensors) -> Moments:
        """The source's, mixed with the running ones as they are."""
        return source.mix(Moments(state["mean"], state["var"]), self.alpha)
