"""A layer's pass over its activations where gradients are taken."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .layers import NormLayer
from .moments import Moments
from .part import Line, Part, apply, facing


class Normalised(torch.autograd.Function):
    """The same pass where gradients are taken.

    Autograd alone would walk over the activations eight times on the way back. Here the plan, all of it tiny, is
    differentiated by autograd, and the activations are walked over once to sum and once to combine, as in the native
    batch normalisation. With y = a x + b, and a, b functions of the moments m, v of n values:

        dx = a dy + (dm + 2 dv (x - m)) / n,    da = sum dy x,    db = sum dy
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, affine: Tensor | None, layer: NormLayer, part: Part) -> Tensor:
        """Normalise [B, C, ...], and keep the graph of the plan."""
        moments = part.moments(layer, x)
        leaves = None if moments is None else Moments(*(each.requires_grad_() for each in moments))
        rows = None if affine is None else affine.detach().requires_grad_()
        with torch.enable_grad():
            planned = part.plan(layer, leaves, x.numel() // (part.images * layer.channels), rows)
            line = part.spread(planned, x.shape[0])
        if leaves is not None:
            states = part.layer_states[layer.path]
            part.layer_states[layer.path] = {name: value.detach() for name, value in states.items()}
            part.seen[layer.path] = Moments(*(each.detach() for each in leaves))
        ctx.save_for_backward(x)
        ctx.graph = leaves, rows, line, part.runs(x.shape[0])
        return apply(x, Line(*(each.detach() for each in line)))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        """Through the line, the plan and the moments."""
        (x,), (gradient,) = ctx.saved_tensors, gradients
        leaves, rows, line, runs = ctx.graph
        inputs = [each for each in (rows, *(leaves or ())) if each is not None]
        outputs = [each for each in line if each.requires_grad]
        found = dict.fromkeys(range(len(inputs)))
        if outputs:
            sums = [each for each, end in zip(_sums(x, gradient, line.scale), line, strict=True) if end.requires_grad]
            found = dict(enumerate(torch.autograd.grad(outputs, inputs, sums, allow_unused=True)))
        towards_rows = None if rows is None else found.pop(0)
        towards_moments = list(found.values())
        (scale,) = facing(x, [line.scale.detach()])
        if not any(each is not None for each in towards_moments):
            return gradient * scale, towards_rows, None, None
        slope, offset = facing(x, _through_moments(x, leaves, towards_moments, runs))
        return torch.addcmul(offset, x, slope).addcmul_(gradient, scale), towards_rows, None, None


def _sums(x: Tensor, gradient: Tensor, like: Tensor) -> Line:
    """Sums of dy x and of dy: over all rows of the activations, or for each; shaped like the line."""
    if like.dim() == 2 and len(like) > 1:
        axes = list(range(2, x.dim()))
        return Line((gradient * x).sum(axes), gradient.sum(axes)) if axes else Line(gradient * x, gradient)
    zeros, ones = _neutral(x.shape[1], x.dtype, x.device)
    # The native operation's derivatives for weight and bias, at mean 0 and variance 1, are these sums.
    _, times, plain = torch.ops.aten.native_batch_norm_backward(
        gradient, x, ones, zeros, ones, None, None, False, 0.0, [False, True, True]
    )
    return Line(times.view_as(like), plain.view_as(like))


@lru_cache(maxsize=256)
def _neutral(channels: int, dtype: torch.dtype, device: torch.device) -> Moments:
    return Moments(torch.zeros(channels, dtype=dtype, device=device), torch.ones(channels, dtype=dtype, device=device))


def _through_moments(x: Tensor, moments: Moments, towards: Sequence[Tensor | None], runs: Sequence[int]) -> Line:
    """Slope and offset of what the moments' derivatives add to dx, for all rows of the activations or for each."""
    mean = moments.mean.detach()
    towards_mean, towards_var = (torch.zeros_like(mean) if each is None else each for each in towards)
    positions = x[0].numel() // x.shape[1]
    each: float | Tensor = 1 / (runs[0] * positions)
    if len(runs) > 1:
        each = 1 / (mean.new_tensor(runs).unsqueeze(1) * positions)
    slope = towards_var * (2 * each)
    offset = torch.addcmul(towards_mean * each, slope, mean, value=-1)
    added = Line(slope, offset)
    return added if mean.dim() == 1 or len(mean) == 1 else added.rows(runs)
