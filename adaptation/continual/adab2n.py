"""AdaB²N: batch statistics weighed by task, running statistics with a momentum that ages."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from ..moments import Moments
from ..part import facing
from .layer_norms import Layer, LearningNorm, Learnt, Lesson, by_running, has_one_value
from .sample_moments import sample_moments


class AdaB2N(LearningNorm):
    """Balance the tasks of a batch in its statistics, by weights that are learnt (Lyu et al. 2023, arXiv:2310.08855).

    A batch of new and replayed samples holds many of the newest task and few of each older one. Here a layer learns
    how much each task counts in the statistics that it normalises by:

        pi_k = (exp psi_k + n_k) / sum_j (exp psi_j + n_j)      psi learnt, n_k samples of task k in the batch
        mu   = sum_k pi_k mean of task k's samples               sigma^2 likewise, of (x - mu)^2, biased

    and its running statistics follow with the rate eta, run += eta (batch - run), which lies between a moving average
    (kappa = 1, eta = momentum) and the mean of all batches (kappa = 0, eta = 1/n). A loss draws the batch's statistics
    to the running ones, mean((mu - run)^2) + mean((sigma^2 - run var)^2), the running ones constant.

    Two things differ from the published code. The weights sum to 1 over the tasks in the batch; as published, seen
    tasks that a batch lacks keep their weight, and mean and variance shrink (`weights: published`). And eta follows in
    closed form from the number of batches, so that it goes on after a reload. A lesson of part of a batch counts as
    that part in the number, and moves the running statistics by as much less.

    A trained network's moments are far from 1, and so is its statistics loss; the weight is chosen for such ones.
    """

    name: Literal["adab2n"] = "adab2n"
    kappa: float = Field(0.4, ge=0, le=1, description="0 averages all batches alike, 1 is a moving average")
    momentum: float = Field(0.1, gt=0, lt=1, description="weight of a new batch at kappa 1")
    loss_weight: float = Field(1e-4, ge=0, le=1e3, description="of the layers' statistics losses in the training loss")
    loss_from_task: int = Field(1, ge=0, description="the first task, from 0, with the statistics loss")
    weights: Literal["present", "published"] = Field(
        "present", description="tasks whose weights sum to 1: those in the batch, or all seen as in the published code"
    )
    weighs_tasks = True

    def learn(self, x: Tensor, layer: Layer, lesson: Lesson) -> Learnt:
        """Normalise by the weighed statistics, through which the gradient flows; then move the running ones."""
        if has_one_value(x):
            return Learnt(by_running(x, layer), layer.running, x.new_zeros(()))
        batch = weighed(sample_moments(x), self.shares(layer.task_weight, lesson))
        constant = Moments(batch.mean.detach(), batch.var.detach())
        running = layer.running.mix(constant, self.rate(lesson.batches + lesson.share, lesson.share))
        loss = sum((now - run).square().mean() for now, run in zip(batch, running, strict=True))
        scale = layer.weight * (batch.var + layer.eps).rsqrt()
        scale, shift = facing(x, (scale, layer.bias - batch.mean * scale))
        return Learnt(torch.addcmul(shift, x, scale), running, torch.as_tensor(loss))

    def penalty(self, losses: Tensor, lesson: Lesson) -> Tensor:
        """The weighed sum over layers, once its task has come."""
        return (self.loss_weight if lesson.known > self.loss_from_task else 0.0) * losses.sum()

    def shares(self, task_weight: Tensor, lesson: Lesson) -> Tensor:
        """How much each sample counts, [B]: its task's weight, shared by the task's samples."""
        counts = torch.bincount(lesson.tasks, minlength=lesson.known).to(task_weight)  # n_k
        mass = task_weight[: lesson.known].exp() + counts
        if self.weights == "present":
            mass = mass * (counts > 0)
        return (mass / mass.sum() / counts.clamp(min=1))[lesson.tasks]

    def rate(self, batches: float, share: float = 1.0) -> float:
        """The rate eta of the n-th batch, n from 1; or of the last share of a batch, with which they are n.

        eta_1 = momentum^kappa and eta_n = eta_(n-1) / (eta_(n-1) + a) with a = (1 - momentum)^kappa, so 1/eta is a
        geometric sum: 1/eta_n = (1 - a^(n-1)) / (1 - a) + a^(n-1) / eta_1.

        1/eta_n is the weight of all that came: a batch adds 1 and ages the rest by a. A share s of one adds
        (1 - a^s) / (1 - a) and ages the rest by a^s, so that its rate is eta_n times what it adds, and shares that make
        a batch leave as much of what was before as the batch does.

        >>> [round(AdaB2N(kappa=kappa).rate(3), 4) for kappa in (0, 0.4, 1)]
        [0.3333, 0.2343, 0.1]
        >>> [round(AdaB2N(kappa=kappa).rate(3, 0.5), 4) for kappa in (0, 0.4, 1)]
        [0.1667, 0.1184, 0.0513]
        """
        a: float = (1 - self.momentum) ** self.kappa
        first: float = self.momentum**self.kappa
        before = batches - 1
        aged: float = (1 - a**before) / (1 - a) if a < 1 else before
        part: float = (1 - a**share) / (1 - a) if a < 1 else share
        weight: float = aged + a**before / first
        return min(1.0, part / weight)  # Rounding alone takes it above.


def weighed(rows: Moments, shares: Tensor) -> Moments:
    """Statistics mu = sum_i s_i mean_i and sigma^2 = sum_i s_i (var_i + (mean_i - mu)^2), [C], of [B, C] by [B]."""
    mean = shares @ rows.mean
    return Moments(mean, shares @ (rows.var + (rows.mean - mean).square()))
