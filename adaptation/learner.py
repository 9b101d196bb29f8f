"""A model that learns in a lesson: its own affine parameters, statistics and optimiser beside the shared network."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor

from .guard import finite
from .hosting import HostedModel
from .member import NormMember, Tensors
from .optimizers import sgd
from .standing import predict
from .turn import Turn

T = TypeVar("T")
Passes: TypeAlias = Generator[None, None, T]
"""Work in passes over a network, with a pause after each in which other work may be done."""


def finished(passes: Passes[T]) -> T:
    """All of the work, without pause."""
    while True:
        try:
            next(passes)
        except StopIteration as end:
            outcome: T = end.value
            return outcome


@dataclass(frozen=True, slots=True, eq=False)
class Learner:
    """One model as one stream has it. Its methods give new ones, and change nothing.

    Images come in runs, which are passed and normalised apart: new samples, then replayed ones. Only the first run
    moves the statistics, for a replayed sample has moved them when it was new, and may be of a world that is gone.
    """

    hosted: HostedModel
    norm_member: NormMember
    affine: Tensor  # [2, C_total]
    velocity: Tensor  # of the optimiser, [2, C_total]
    norm: Tensors  # of the norm member, each [..., C_total]

    def learn(
        self, runs: Sequence[Tensor], loss: Callable[[Tensor, int], Tensor], lr: float, momentum: float, share: float
    ) -> Passes[tuple["Learner", float]]:
        """One step of stochastic gradient descent on the mean over all images, and the loss before it.

        Args:
            runs: images, each [n, 3, H, W].
            loss: of the logits [n, classes] of the run with that number, a mean over its images.
            lr: of a whole step.
            momentum: of the velocity in a whole step, below 1.
            share: of a step that this one is, above 0, as if so much time went by: the velocity loses and gains its
                part of what a whole step takes and gives, and the parameters move by that part of it.
        """
        gradient, total, norm = torch.zeros_like(self.affine), 0.0, self.norm
        images = sum(map(len, runs))
        for number, run in enumerate(runs):
            affine = self.affine.detach().clone().requires_grad_()
            with torch.enable_grad():
                answer = self._turn(run).run(affine[None])
                value = loss(answer.logits, number) * (len(run) / images)
                gradient = gradient + torch.autograd.grad(value, affine)[0]
            total += value.item()
            if number == 0:
                norm = {name: moved[0].detach().clone() for name, moved in answer.norm.items()}
            del answer, value  # They hold every activation.
            yield
        with torch.no_grad():
            memory = {"velocity": self.velocity[None]}
            kept = momentum**share
            gained = (1 - kept) / (1 - momentum) * gradient
            rate = gradient.new_tensor([share * lr])
            moved, memory = sgd(self.affine[None], gained[None], memory, rate, kept)
        return replace(self, affine=moved[0], velocity=memory["velocity"][0], norm=norm), total

    def pulled_to_source(self, weight: float) -> "Learner":
        """The model a part of the way back to its trained parameters (weight ensembling, Marsden et al. 2024)."""
        return replace(self, affine=torch.lerp(self.affine, self.hosted.layers.affine, weight))

    def answer(self, runs: Sequence[Tensor]) -> Passes[list[Tensor]]:
        """Logits [n, classes] of each run, without learning.

        By the statistics that it remembers; a member that remembers none takes each run's own.
        """
        logits = []
        for run in runs:
            with torch.no_grad():
                if self.norm or not self.norm_member.adapts:
                    logits.append(predict(self.hosted, self.norm_member, self.affine, self.norm, run))
                else:
                    logits.append(self._turn(run).run(self.affine[None]).logits)
            yield
        return logits

    @property
    def finite(self) -> bool:
        """Whether all its values are."""
        return all(finite(value) for value in (self.affine, self.velocity, *self.norm.values()))

    def _turn(self, run: Tensor) -> Turn:
        norm = {name: value[None] for name, value in self.norm.items()}
        return Turn(self.hosted, self.norm_member, norm, (len(run),), run)
