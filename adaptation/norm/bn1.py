"""BN-1: the statistics of the batch at hand."""

from typing import Literal

from ..member import NormMember, Tensors
from ..moments import Batch, Moments


class BN1(NormMember):
    """Normalise by the batch's own statistics, biased variance (Nado et al. 2020, arXiv:2006.10963).

    Strong on large batches of mixed content; poor on small ones and on streams where one class follows itself for
    long. Where a stream has a single value per channel (one image, 1x1 map) there is no variance, and the source's
    statistics are taken.
    """

    name: Literal["bn1"] = "bn1"

    def plan(self, source: Moments, batch: Batch, state: Tensors) -> tuple[Moments, Tensors]:
        """Mu = mu_B, var = var_B."""
        return batch.biased(fallback=source), state
