"""A normalisation layer served from outside: it does to each sample what the sample's stream asks."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from .layers import NormLayer
from .normalised import Normalised
from .part import Line, Part, apply


@dataclass(frozen=True, slots=True)
class Served:
    """Takes the place of a layer's `forward`."""

    layer: NormLayer
    running: threading.local  # `parts`: who the samples of this thread's forward pass belong to
    overwrite: bool  # whether the layer may write its result over its input

    def __call__(self, x: Tensor) -> Tensor:
        """The layer's output."""
        layer, parts = self.layer, getattr(self.running, "parts", None)
        if parts is None:
            return layer.forward(x)
        if layer.normalise is None:
            y = _normalised(layer, x, parts, overwrite=self.overwrite)
        elif any(part.touches(layer) for part in parts):
            y = _normalised(layer, layer.normalise(x), parts, overwrite=True)
            y = y.movedim(1, -1) if layer.tokens else y
        else:
            return layer.forward(x)
        for module in layer.tail:
            y = _after(module, y)
        return y


def _after(module: nn.Module, y: Tensor) -> Tensor:
    """Dropout or activation."""
    if isinstance(module, nn.Hardtanh) and torch.is_grad_enabled():
        # In place, it would copy its input for the way back: more than a new output.
        return functional.hardtanh(y, module.min_val, module.max_val)
    output: Tensor = module(y)
    return output


def _normalised(layer: NormLayer, x: Tensor, parts: Sequence[Part], *, overwrite: bool) -> Tensor:
    if torch.is_grad_enabled():
        (part,) = parts  # Only streams of one recipe take gradients together.
        y: Tensor = Normalised.apply(x, part.rows(layer), layer, part)  # type: ignore[no-untyped-call] # torch's
        return y
    if len(parts) == 1:
        line = parts[0].spread(parts[0].line(layer, x), x.shape[0])
    else:
        rows = x.shape[0] // sum(part.images for part in parts)
        runs = x.split([part.images * rows for part in parts])
        pairs = zip(parts, runs, strict=True)
        lines = [part.spread(part.line(layer, run), len(run), even_one=True) for part, run in pairs]
        line = Line(*(torch.cat(each) for each in zip(*lines, strict=True)))
    return apply(x, line, out=x if overwrite else None)
