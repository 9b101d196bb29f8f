"""A head that grows: new outputs, and what else has a row for each class or task."""

from math import sqrt

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from ..member import Tensors
from .network import TASK_WEIGHT

HEAD_WEIGHT, HEAD_BIAS = "head.weight", "head.bias"


def grow(parameters: Tensors, classes: int, tasks: int, rng: np.random.Generator) -> Tensors:
    """Parameters for as many classes and tasks; those that there were keep theirs.

    A new output starts as torch's linear layers do, uniform within 1 / sqrt(width); a new task with weight 0.
    """
    grown = {name: lengthened(value, tasks) for name, value in parameters.items() if name.endswith(f".{TASK_WEIGHT}")}
    weight, bias = parameters[HEAD_WEIGHT], parameters[HEAD_BIAS]
    if new := classes - len(bias):
        bound = 1 / sqrt(weight.shape[1])
        draws = torch.from_numpy(rng.uniform(-bound, bound, (new, weight.shape[1] + 1))).to(weight)
        grown |= {HEAD_WEIGHT: torch.cat([weight, draws[:, 1:]]), HEAD_BIAS: torch.cat([bias, draws[:, 0]])}
    return parameters | grown


def lengthened(tensor: Tensor, rows: int) -> Tensor:
    """With rows of 0 behind, until there are `rows`; a scalar stays.

    >>> lengthened(torch.ones(1, 2), 2)
    tensor([[1., 1.],
            [0., 0.]])
    """
    if tensor.dim() == 0:
        return tensor
    return pad(tensor, (*[0, 0] * (tensor.dim() - 1), 0, rows - len(tensor)))
