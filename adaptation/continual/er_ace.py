"""ER-ACE: experience replay with asymmetric cross-entropy."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ..member import Member, Need
from .answers import Answers, Replayed


class ErAce(Member):
    """New samples compete among their own classes, replayed ones among all (Caccia et al. 2022, arXiv:2104.05025).

        loss = CE(new, among the classes present in the new samples) + CE(replayed, among all classes)

    So that the first sight of new classes does not push the old ones away. As in the published code nothing is
    replayed during the first task, whose loss is the plain cross-entropy.
    """

    name: Literal["er_ace"] = "er_ace"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.CLASSIFIER})
    keeps_logits: ClassVar[bool] = False

    def replays(self, tasks: int) -> int:
        """Draws from the memory in a step."""
        return 1 if tasks > 1 else 0

    def loss(self, new: Answers, replayed: Sequence[Replayed]) -> Tensor:
        """Of one step, a scalar."""
        if not replayed:
            return cross_entropy(new.logits, new.labels)
        (old,) = replayed
        return cross_entropy(among_present(new), new.labels) + cross_entropy(old.logits, old.labels)


def among_present(answers: Answers) -> Tensor:
    """Logits with those of absent classes at minus infinity."""
    present = torch.zeros(answers.logits.shape[1], dtype=torch.bool, device=answers.labels.device)
    present[answers.labels] = True
    return answers.logits.masked_fill(~present, float("-inf"))
