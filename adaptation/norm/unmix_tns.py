"""UnMix-TNS: a mixture of components per layer, which unmixes a stream whose samples are not i.i.d."""

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ..member import NormMember, Tensors
from ..moments import Batch, Moments
from ..rates import weight_of


class UnMixTNS(NormMember):
    """Normalise each sample by a mixture that it blends into (Tomar et al. 2024, arXiv:2401.08328).

    Each layer keeps K components. A sample belongs to them by the similarity of its channel means to theirs, pulls
    them towards its own moments by as much, and is normalised by the moments of the mixture that results. So an answer
    does not depend on the other samples of its batch; they only move the components, after it was given.

    Two things differ from the published code unless asked for. `init="moment_matched"` centres and scales the random
    offsets over the components, so that at step 0 the mixture has exactly the source's mean and variance; the
    `published` draw has them only in expectation, which through dozens of layers destroys an EfficientNet. And the
    rate follows the number of images that really came, not a configured batch size. Variances are biased.
    """

    name: Literal["unmix_tns"] = "unmix_tns"
    components: int = Field(16, ge=1, le=128, description="K; the instance's own weight is 1 / K")
    temperature: float = Field(0.07, gt=0, le=100, description="of the softmax over components")
    momentum: float = Field(0.1, gt=0, le=1, description="weight of 64 new images in the components")
    init: Literal["moment_matched", "published"] = Field("moment_matched", description="how components are drawn")
    seed: int = Field(0, ge=0, lt=2**63, description="of the draw")

    per_sample: ClassVar[bool] = True

    def initial(self, source: Moments) -> Tensors:
        """K components around the source: half its variance within them, half between them."""
        if self.components == 1:
            return {"mean": source.mean.unsqueeze(0).clone(), "var": source.var.unsqueeze(0).clone()}
        spread = (0.5 * source.var).sqrt() * self._offsets(source.mean)
        return {"mean": source.mean + spread, "var": (0.5 * source.var).expand_as(spread).clone()}

    def plan(self, source: Moments, batch: Batch, state: Tensors) -> tuple[Moments, Tensors]:
        """Blend every sample into its stream's mixture; then move the mixture."""
        del source  # It is in the components from the start.
        samples = zip(*(each.split(list(batch.images)) for each in batch.moments), strict=True)
        components = zip(state["mean"], state["var"], strict=True)
        outcomes = [self._stream(Moments(*mine), Moments(*its)) for mine, its in zip(samples, components, strict=True)]
        chosen, moved = zip(*outcomes, strict=True)
        mean, var = (torch.stack(rows) for rows in zip(*moved, strict=True))
        return Moments(*(torch.cat(rows) for rows in zip(*chosen, strict=True))), {"mean": mean, "var": var}

    def standing(self, source: Moments, state: Tensors) -> Moments:
        """Those of the mixture of all components."""
        del source
        mean, var = state["mean"], state["var"]
        return Moments(mean.mean(-2), var.mean(-2) + mean.var(-2, correction=0))

    def _stream(self, samples: Moments, components: Moments) -> tuple[Moments, Moments]:
        """Moments to normalise by, [n, C], and the moved components, [K, C], of one stream with n samples."""
        member = self._membership(samples.mean, components.mean)  # [n, K], rows sum to 1
        centre = components.mean.mean(0)  # The sums below are about it, so that large means cancel before squaring.
        sample, component = samples.mean - centre, components.mean - centre
        mean = (sample - member @ component) / self.components
        second = (
            (1 - member).square() @ component.square()
            + 2 * sample * ((member * (1 - member)) @ component)
            + sample.square() * member.square().sum(1, keepdim=True)
        ) / self.components
        within = components.var.mean(0) + (samples.var - member @ components.var) / self.components
        return Moments(centre + mean, within + second - mean.square()), self._moved(samples, components, member)

    def _membership(self, samples: Tensor, components: Tensor) -> Tensor:
        # As published, no gradient flows through the membership.
        samples = samples.detach()
        similarity = nn.functional.normalize(samples, dim=1) @ nn.functional.normalize(components, dim=1).T
        return (similarity / self.temperature).softmax(dim=1)

    def _moved(self, samples: Moments, components: Moments, member: Tensor) -> Moments:
        """Components pulled towards the samples: + rate * mean over samples of member * (sample - component)."""
        n = len(member)
        rate = weight_of(n, self.momentum)
        share = member.mean(0).unsqueeze(1)  # [K, 1]
        return Moments(
            *(
                each + rate * (member.T @ seen / n - share * each)
                for seen, each in zip(samples, components, strict=True)
            )
        )

    def _offsets(self, like: Tensor) -> Tensor:
        """Random offsets of the components, [K, C], of variance 1."""
        generator = torch.Generator().manual_seed(self.seed)
        draw = torch.randn(self.components, len(like), generator=generator).to(like)
        if self.init == "published":
            return draw * math.sqrt(self.components / (self.components - 1))
        centred = draw - draw.mean(0)
        return centred / centred.square().mean(0).sqrt()
