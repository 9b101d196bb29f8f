"""N-prior BN: alpha-BN whose weight follows the batch size."""

from typing import Literal

from pydantic import Field

from ..member import NormMember, Tensors
from ..moments import Batch, Moments


class NPrior(NormMember):
    """Let the source count as `prior_images` images beside the batch's own (Schneider et al. 2020, arXiv:2006.16971).

    With n images the batch's weight is n / (N + n): near the source for one image, near the batch for hundreds. The
    batch's variance is the unbiased one, as in the published code; a single value per channel takes the source's.
    """

    name: Literal["n_prior"] = "n_prior"
    prior_images: float = Field(16.0, gt=0, le=1e6, description="N: how many images the source counts as")

    def plan(self, source: Moments, batch: Batch, state: Tensors) -> tuple[Moments, Tensors]:
        """Mu = N/(N+n) mu_S + n/(N+n) mu_B, and the variance likewise."""
        weight = batch.per_stream([n / (self.prior_images + n) for n in batch.images])
        return source.mix(batch.unbiased(fallback=source), weight), state
