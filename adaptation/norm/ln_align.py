"""LN-align: layer and group norms whose outputs keep the moments that they have on source data."""

from typing import ClassVar, Literal

from pydantic import Field

from ..member import Need, NormMember, Tensors
from ..moments import Batch, Moments

EPS = 1e-5  # added to both variances: a channel that hardly varies is scaled by next to nothing


class LNAlign(NormMember):
    """Align each channel of what layer and group norms give, before their affine, with its moments on source data.

    The formulation is ours. Normalising each sample by itself leaves every channel with a mean and a variance of its
    own over samples and positions, and a corruption shifts them. y = (x - mu_T) / sigma_T * sigma_S + mu_S takes the
    shift back, with the calibrated source moments mu_S, sigma_S. FOA's activation shifting does so for the last
    layer's class token and the mean alone (Niu et al. 2024, arXiv:2404.01650).

    mu_T, sigma_T are the source's moments mixed with the stream's running ones, as in `ema` and alpha-BN
    (arXiv:2110.04065): the running moments start at the source, take in a batch before they are used, at a rate per
    image, and keep the between-batch term of the variance. A stream whose moments are the source's is left as it is.
    Variances are biased.
    """

    name: Literal["ln_align"] = "ln_align"
    momentum: float = Field(0.0125, gt=0, le=1, description="weight of one new image in the running moments")
    alpha: float = Field(0.2, ge=0, le=1, description="weight of the running moments; 0 changes nothing")

    batch_agnostic: ClassVar[bool] = True
    needs: ClassVar[frozenset[Need]] = frozenset({Need.SAMPLE_NORM, Need.SOURCE_MOMENTS})

    def initial(self, source: Moments) -> Tensors:
        """Start at the source: the first answer is the trained model's but for one small step."""
        return {"mean": source.mean.clone(), "var": source.var.clone()}

    def plan(self, source: Moments, batch: Batch, state: Tensors) -> tuple[Moments, Tensors]:
        """The line y as moments to normalise by: sigma = sigma_T / sigma_S, mu = mu_T - mu_S sigma."""
        weight = batch.per_stream([1 - (1 - self.momentum) ** n for n in batch.images])
        running = Moments(state["mean"], state["var"]).merge(batch.moments, weight)
        return self._line(source, running), {"mean": running.mean, "var": running.var}

    def standing(self, source: Moments, state: Tensors) -> Moments:
        """The line of the running moments as they are."""
        return self._line(source, Moments(state["mean"], state["var"]))

    def _line(self, source: Moments, running: Moments) -> Moments:
        stream = source.mix(running, self.alpha)
        square = (stream.var + EPS) / (source.var + EPS)
        return Moments(stream.mean - source.mean * square.sqrt(), square)
