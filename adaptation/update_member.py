"""What a member of the `update` slot is: a loss that moves each stream's own affine parameters.

The parameters are rows, one for each stream: one backward pass over a batch of many streams gives each its own
gradient, as if it ran alone.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from .guard import Guard
from .member import Member, Need, Tensors
from .optimizers import Optimizer, adam, initial_memory, sgd
from .rates import PUBLISHED_BATCH, weight_of
from .turn import Pass, Turn

if TYPE_CHECKING:
    from .hosting import HostedModel


class Objective(NamedTuple):
    """What an update member makes of a forward pass."""

    loss: Tensor  # [S]
    active: Tensor  # [S], bool: whether the stream takes a step; False when it keeps no image
    memory: Tensors  # the member's own, moved on


class Gradients(NamedTuple):
    """A turn up to the optimiser's step."""

    answer: Pass
    gradient: Tensor  # [S, 2, C_total]
    active: Tensor  # [S], bool
    memory: Tensors


class UpdateMember(Member):
    """How the affine parameters of normalisation layers move.

    Most members only define `objective`. One that answers with other parameters, or takes its gradient elsewhere than
    at the answer, defines `gradients`; one with a teacher or a restart defines `after`.
    """

    optimizer: Optimizer = Field("sgd", description="SGD with momentum, or Adam")
    lr: float = Field(0.00025, gt=0, le=10, description="learning rate for 64 images")
    momentum: float = Field(0.9, ge=0, lt=1, description="of SGD")
    rate: Literal["per_image", "published"] = Field(
        "per_image", description="scale lr and weights with the batch's images, or take them for any batch as published"
    )
    reset_every: int = Field(
        0, ge=0, le=10**9, description="steps after which everything learnt is forgotten (RDumb: 1000); 0 is never"
    )
    source_pull: float = Field(
        0.0, ge=0, lt=1, description="weight of the source's parameters after a step of 64 images (ROID: 0.01)"
    )
    guard: Guard = Field(default_factory=Guard, description="when a step is discarded")

    needs: ClassVar[frozenset[Need]] = frozenset({Need.NORM})
    usual_norm: ClassVar[str] = "bn1"
    """The norm member of the preset of this member's name."""

    def initial(self, hosted: "HostedModel") -> Tensors:
        """The member's own memory of a new stream."""
        del hosted
        return {}

    def objective(self, turn: Turn, affine: Tensor, answer: Pass, memory: Tensors) -> Objective:
        """The loss of each stream.

        Args:
            turn: the streams, and the network to run again if need be.
            affine: [S, 2, C_total]; gradients are taken for it.
            answer: the forward pass that answers.
            memory: the member's own, stacked.
        """
        raise NotImplementedError

    def gradients(self, turn: Turn, affine: Tensor, memory: Tensors) -> Gradients:
        """Answer, and take the gradient of the objective there."""
        affine = affine.detach().requires_grad_()
        answer = turn.run(affine)
        objective = self.objective(turn, affine, answer, memory)
        (gradient,) = torch.autograd.grad(objective.loss.sum(), affine)
        return Gradients(answer, gradient, objective.active, objective.memory)

    def after(self, turn: Turn, affine: Tensor, active: Tensor, memory: Tensors) -> tuple[Tensor, Tensors, Tensor]:
        """What follows the optimiser's step: parameters, memory, and which streams begin anew, [S] bool."""
        del turn
        return affine, memory, torch.zeros_like(active)

    def serving(self, affine: Tensor, memory: Tensors) -> Tensor:
        """The parameters that answer, of learnt ones and the memory; of all streams, [S, ...], or of one."""
        del memory
        return affine

    def resumed(self, affine: Tensor, memory: Tensors) -> Tensors:
        """The memory of a stream that begins anew at `affine`, made from that of one that begins at the source."""
        del affine
        return memory

    def for_images(self, turn: Turn, weight: float) -> Tensor:
        """A weight of what is new in 64 images, for each stream's number of them: 1 - (1 - weight)^(n / 64), [S]."""
        return turn.hosted.layers.affine.new_tensor([weight_of(n, weight) for n in self._rated(turn)])

    def optimizer_memory(self, affine: Tensor) -> Tensors:
        """Of one new stream."""
        return initial_memory(self.optimizer, affine)

    def descend(self, turn: Turn, affine: Tensor, gradient: Tensor, memory: Tensors) -> tuple[Tensor, Tensors]:
        """The optimiser's step, and the pull towards the source."""
        lr = affine.new_tensor([self.lr * n / PUBLISHED_BATCH for n in self._rated(turn)])
        if self.optimizer == "sgd":
            affine, memory = sgd(affine, gradient, memory, lr, self.momentum)
        else:
            affine, memory = adam(affine, gradient, memory, lr)
        if self.source_pull:
            pull = self.for_images(turn, self.source_pull).view(-1, 1, 1)
            affine = torch.lerp(affine, turn.hosted.layers.affine, pull)
        return affine, memory

    def _rated(self, turn: Turn) -> Sequence[int]:
        """The images of each stream that rates are taken for."""
        return [PUBLISHED_BATCH] * len(turn.sizes) if self.rate == "published" else turn.sizes
