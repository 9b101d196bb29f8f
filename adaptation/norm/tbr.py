"""TBR: the running statistics in value, the batch's in derivative."""

from typing import Literal

from pydantic import Field
from torch import Tensor

from ..member import NormMember, Tensors
from ..moments import Batch, Moments
from ..rates import weight_of


class TBR(NormMember):
    """Normalise by the batch, then renormalise to running statistics (CEMA: Chen et al. 2024, arXiv:2402.17316).

    Test-time batch renormalisation is y = r (x - mu_B) / s_B + d with r = s_B / s and d = (mu_B - mu) / s held
    constant, s^2 the variance plus eps (Ioffe 2017, arXiv:1702.03275, without its bounds; DELTA: Zhao et al. 2023,
    arXiv:2301.13018). Its value is that of running statistics from before the batch; its gradient is that of batch
    normalisation times r. So it differs from a moving average only beside an update member, whose steps stay sound on
    small batches. The running statistics take the batch in after it was answered; variances are unbiased as in CEMA's
    code (DELTA's are biased), and a single value per channel, which has none, moves nothing.

    Two things are ours: the running statistics start at the source and not at the first batch, which may be one grey
    image; and their rate follows the number of images that came.
    """

    name: Literal["tbr"] = "tbr"
    momentum: float = Field(0.1, gt=0, le=1, description="weight of 64 new images in the running statistics")

    def initial(self, source: Moments) -> Tensors:
        """Start at the source: the first answer is the trained model's."""
        return {"mean": source.mean.clone(), "var": source.var.clone()}

    def plan(self, source: Moments, batch: Batch, state: Tensors) -> tuple[Moments, Tensors]:
        """Use the running statistics; then mu += rate (mu_B - mu), and the variance likewise."""
        del source  # It is in the running statistics from the start.
        running = Moments(state["mean"], state["var"])
        seen = batch.unbiased(fallback=running)
        constant = Moments(seen.mean.detach(), seen.var.detach())
        rate = batch.per_stream([weight_of(n, self.momentum) for n in batch.images])
        mean, var = running.mix(constant, rate)
        return _renormalised(running, seen, constant, batch.eps), {"mean": mean, "var": var}

    def standing(self, source: Moments, state: Tensors) -> Moments:
        """The running ones."""
        del source
        return Moments(state["mean"], state["var"])


def _renormalised(running: Moments, seen: Moments, constant: Moments, eps: Tensor) -> Moments:
    """The moments M, V for which (x - M) / sqrt(V + eps) is r (x - mu_B) / s_B + d.

    Those are M = mu_B - (d / r) s_B and V + eps = (s_B / r)^2 with r, d constant. The changes below are 0 in value and
    carry the derivative, so the value is that of the running statistics to the last bit.
    """
    if not seen.mean.requires_grad:
        return running
    mean_change, var_change = seen.mean - constant.mean, seen.var - constant.var
    square = constant.var + eps
    mean = running.mean + mean_change - 0.5 * (constant.mean - running.mean) / square * var_change
    return Moments(mean, running.var + (running.var + eps) / square * var_change)
