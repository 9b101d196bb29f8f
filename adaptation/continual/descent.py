"""Steps of a stream's own parameters down their gradients."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from .. import optimizers
from ..member import Frozen, Tensors


class Descent(Frozen):
    """An optimiser; what it remembers has the shape of the parameter, so that it can grow with it."""

    name: Literal["sgd", "adam"] = "sgd"
    lr: float = Field(0.03, gt=0, le=10, description="step size of a whole batch; a smaller one takes its share")
    momentum: float = Field(0.0, ge=0, lt=1, description="of sgd's velocity")

    def initial(self, parameter: Tensor) -> Tensors:
        """Memory of a new parameter; plain gradient descent has none."""
        if self.name == "sgd" and not self.momentum:
            return {}
        return optimizers.initial_memory(self.name, parameter)

    def step(self, parameter: Tensor, gradient: Tensor, memory: Tensors, share: float) -> tuple[Tensor, Tensors]:
        """The parameter after this share of a step, and the memory.

        Sgd takes the share of the gradient, so that it is the velocity's too; to adam, which normalises gradients, that
        would mean nothing, and it takes the share of the rate.
        """
        if not memory:
            return parameter - self.lr * share * gradient, memory
        rows = {name: value.unsqueeze(0) for name, value in memory.items()}
        row, step, lr = parameter.unsqueeze(0), gradient.unsqueeze(0), torch.full((1,), self.lr).to(parameter)
        if self.name == "sgd":
            moved, rows = optimizers.sgd(row, share * step, rows, lr, self.momentum)
        else:
            moved, rows = optimizers.adam(row, step, rows, share * lr)
        return moved[0], {name: value[0] for name, value in rows.items()}
