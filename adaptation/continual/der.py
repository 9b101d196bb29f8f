"""DER++: dark experience replay, with labels."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy

from ..member import Member, Need
from .answers import Answers, Replayed


class DerPlusPlus(Member):
    """Replayed samples keep the logits that they had, and their labels (Buzzega et al. 2020, arXiv:2004.07211).

        loss = CE(new) + alpha MSE(replayed, its logits when it was stored) + beta CE(replayed again)

    The two replays are draws of their own, and the stored logits are those of the step that learnt the sample. Outputs
    that a sample's logits lack, since their classes came later, have no part in the MSE.
    """

    name: Literal["derpp"] = "derpp"
    alpha: float = Field(0.2, ge=0, le=100, description="weight of the stored logits")
    beta: float = Field(0.5, ge=0, le=100, description="weight of the replayed labels")
    needs: ClassVar[frozenset[Need]] = frozenset({Need.CLASSIFIER})
    keeps_logits: ClassVar[bool] = True

    def replays(self, tasks: int) -> int:
        """Draws from the memory in a step."""
        del tasks  # Replay begins within the first task.
        return 2

    def loss(self, new: Answers, replayed: Sequence[Replayed]) -> Tensor:
        """Of one step, a scalar."""
        loss = cross_entropy(new.logits, new.labels)
        if not replayed:
            return loss
        first, second = replayed
        return loss + self.alpha * stored_mse(first) + self.beta * cross_entropy(second.logits, second.labels)


def stored_mse(replayed: Replayed) -> Tensor:
    """Mean over stored outputs of (logit - stored logit)^2; 0 where none are stored."""
    width = replayed.stored.shape[1]
    had = torch.arange(width, device=replayed.stored.device) < replayed.outputs.unsqueeze(1)
    errors = (replayed.logits[:, :width] - replayed.stored)[had].square()
    return errors.mean() if len(errors) else errors.sum()
