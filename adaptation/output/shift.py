"""Activation shifting: features moved back to where the classifier learnt them."""

from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from ..member import Need, OutputMember, Tensors
from ..rates import weight_of

if TYPE_CHECKING:
    from ..hosting import HostedModel


class Shift(OutputMember):
    """Add the mean difference of source and stream to features (FOA-Shift, Niu et al. 2024, arXiv:2404.01650).

    z <- z + gamma (mu_S - h), where mu_S is the source's mean feature and h the running mean of the stream's, which
    moves after the answer: h <- 0.9 h + 0.1 mean_b(z). Kept here is their difference, the shift.

    Ours by default: a stream starts without a shift, not at its first batch's; its rate is per image, momentum for 64
    of them; and `target` is class-balanced. The published difference of means takes a stream's content for a shift: it
    removes the very class that a stream shows for long. The balanced one compares each image with the source's mean of
    the class that the network itself predicts, and so is nothing where nothing has shifted, whatever comes how often.
    """

    name: Literal["shift"] = "shift"
    gamma: float = Field(1.0, ge=0, le=2, description="how much of the shift is applied; 0 is the network")
    momentum: float = Field(0.1, gt=0, le=1, description="weight of 64 new images in the running shift")
    target: Literal["class_balanced", "source"] = Field(
        "class_balanced", description="where features should be: at their classes' means, or as published at the mean"
    )

    needs: ClassVar[frozenset[Need]] = frozenset({Need.CLASSIFIER, Need.SOURCE_FEATURES})

    def initial(self, hosted: "HostedModel") -> Tensors:
        """No shift: the first answer is the network's own."""
        assert hosted.calibration is not None
        return {"shift": torch.zeros_like(hosted.calibration.feature_mean)}

    def adjust(
        self, hosted: "HostedModel", logits: Tensor, features: Tensor | None, state: Tensors
    ) -> tuple[Tensor, Tensors]:
        """Logits of the shifted features; then the shift moves."""
        assert features is not None
        assert hosted.classifier is not None
        shift = state["shift"]
        # The classifier is linear: W (z + gamma shift) + b are the network's logits and one vector for all images.
        shifted = logits + self.gamma * (hosted.classifier.weight @ shift)
        rate = weight_of(len(features), self.momentum)
        difference = self._target(hosted, logits) - features.mean(dim=0)
        return shifted, {"shift": torch.lerp(shift, difference, rate)}

    def _target(self, hosted: "HostedModel", logits: Tensor) -> Tensor:
        """Mean of the features that the source would have had, [D]."""
        assert hosted.calibration is not None
        if self.target == "source":
            return hosted.calibration.feature_mean
        # By predicted class, as the calibration counted: probabilities would pull even unshifted features to the mean.
        return hosted.calibration.class_features[logits.argmax(dim=1)].mean(dim=0)
