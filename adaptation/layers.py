"""The normalisation layers of a model: which ones there are, and what each needs to be served from outside."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import BatchNormAct2d, FrozenBatchNormAct2d, SyncBatchNormAct
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops import FrozenBatchNorm2d

from .moments import Moments

BATCH_NORMS = (_BatchNorm, FrozenBatchNormAct2d, FrozenBatchNorm2d)

# The forwards that are known to be "normalise, then dropout, then activation": code of another shape is not served.
_KNOWN_FORWARDS = {
    nn.BatchNorm1d.forward,
    nn.BatchNorm2d.forward,
    nn.BatchNorm3d.forward,
    nn.SyncBatchNorm.forward,
    BatchNormAct2d.forward,
    SyncBatchNormAct.forward,
    FrozenBatchNormAct2d.forward,
    FrozenBatchNorm2d.forward,
}


@dataclass(frozen=True, slots=True, eq=False)
class NormLayer:
    """One batch-normalisation layer of a hosted model."""

    path: str
    kind: str
    channels: int
    eps: Tensor  # a scalar, as a tensor: adding a Python number to a small tensor costs twice as much
    start: int  # of its channels among those of all layers, side by side
    source: Moments  # statistics of training, [C]
    weight: Tensor  # [C]
    bias: Tensor  # [C]
    forward: Callable[[Tensor], Tensor]  # the layer's own
    tail: tuple[nn.Module, ...]  # what a fused layer does after normalising: dropout, activation

    @property
    def span(self) -> slice:
        """Where the layer's channels lie among those of all layers."""
        return slice(self.start, self.start + self.channels)


def find_layers(model: nn.Module, reached: list[str]) -> tuple[list[NormLayer], dict[str, str]]:
    """The layers that can be served from outside, and for the others the reason why not.

    Args:
        model: any network.
        reached: paths of the modules that one forward pass runs, once for each time.
    """
    layers: list[NormLayer] = []
    refused: dict[str, str] = {}
    start = 0
    for path, module in model.named_modules():
        if not isinstance(module, BATCH_NORMS):
            continue
        if reason := _unusable(module, reached.count(path)):
            refused[path] = reason
        else:
            layers.append(_layer(path, module, start))
            start += layers[-1].channels
    return layers, refused


def _unusable(module: Any, calls: int) -> str | None:
    if type(module).forward not in _KNOWN_FORWARDS:
        return f"{type(module).__qualname__} has a forward of its own"
    if module.running_mean is None or module.running_var is None:
        return "it keeps no running statistics (track_running_stats=False)"
    if calls != 1:
        return f"a forward pass runs it {calls} times"
    return None


def _layer(path: str, module: Any, start: int) -> NormLayer:
    mean, var, weight, bias = (getattr(module, name) for name in ("running_mean", "running_var", "weight", "bias"))
    return NormLayer(
        path=path,
        kind=type(module).__name__,
        channels=len(mean),
        eps=mean.new_tensor(module.eps),
        start=start,
        source=Moments(mean.detach(), var.detach()),
        weight=torch.ones_like(mean) if weight is None else weight.detach(),
        bias=torch.zeros_like(mean) if bias is None else bias.detach(),
        forward=module.forward,
        tail=tuple(
            part
            for part in (getattr(module, name, None) for name in ("drop", "act"))
            if isinstance(part, nn.Module) and not isinstance(part, nn.Identity)
        ),
    )
