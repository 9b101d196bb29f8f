"""The normalisation layers of a model: which ones there are, and what each needs to be served from outside."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from timm.layers import (
    BatchNormAct2d,
    FrozenBatchNormAct2d,
    GroupNorm,
    GroupNorm1,
    GroupNorm1Act,
    GroupNormAct,
    LayerNorm,
    LayerNorm2d,
    LayerNormAct,
    LayerNormAct2d,
    SyncBatchNormAct,
)
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops import FrozenBatchNorm2d

from .member import Tensors
from .moments import Moments, side_by_side

BATCH_NORMS = (_BatchNorm, FrozenBatchNormAct2d, FrozenBatchNorm2d)
SAMPLE_NORMS = (nn.LayerNorm, nn.GroupNorm)


def _layer_norm(module: Any, x: Tensor) -> Tensor:
    return functional.layer_norm(x, module.normalized_shape, eps=module.eps).movedim(-1, 1)


def _layer_norm_2d(module: Any, x: Tensor) -> Tensor:
    return _layer_norm(module, x.permute(0, 2, 3, 1))


def _group_norm(module: Any, x: Tensor) -> Tensor:
    return functional.group_norm(x, module.num_groups, eps=module.eps)


# The forwards that are known to be "normalise, then dropout, then activation": code of another shape is not served.
_BATCH_FORWARDS = {
    nn.BatchNorm1d.forward,
    nn.BatchNorm2d.forward,
    nn.BatchNorm3d.forward,
    nn.SyncBatchNorm.forward,
    BatchNormAct2d.forward,
    SyncBatchNormAct.forward,
    FrozenBatchNormAct2d.forward,
    FrozenBatchNorm2d.forward,
}
_SAMPLE_FORWARDS: dict[Any, Callable[[Any, Tensor], Tensor]] = {
    nn.LayerNorm.forward: _layer_norm,
    LayerNorm.forward: _layer_norm,
    LayerNormAct.forward: _layer_norm,
    LayerNorm2d.forward: _layer_norm_2d,
    LayerNormAct2d.forward: _layer_norm_2d,
    nn.GroupNorm.forward: _group_norm,
    GroupNorm.forward: _group_norm,
    GroupNorm1.forward: _group_norm,
    GroupNormAct.forward: _group_norm,
    GroupNorm1Act.forward: _group_norm,
}
_TOKENS = {nn.LayerNorm.forward, LayerNorm.forward, LayerNormAct.forward}  # whose channels are the last axis


@dataclass(frozen=True, slots=True, eq=False)
class NormLayer:
    """One normalisation layer of a hosted model.

    Batch normalisation has statistics of training, and is normalised by those that a norm member chooses. Layer and
    group normalisation normalise each sample by itself; what comes of that, before the affine, takes the part of the
    activations. A norm member starts from its moments on source data, which are 0 and 1 until the model is calibrated.
    """

    path: str
    kind: str
    channels: int
    eps: Tensor  # a scalar, as a tensor: adding a Python number to a small tensor costs twice as much
    source: Moments  # statistics of training, or of calibration, [C]
    weight: Tensor  # [C]
    bias: Tensor  # [C]
    forward: Callable[[Tensor], Tensor]  # the layer's own
    tail: tuple[nn.Module, ...] = ()  # what a fused layer does after normalising: dropout, activation
    normalise: Callable[[Tensor], Tensor] | None = None  # layer and group norm: to [B, C, ...], before the affine
    tokens: bool = False  # channels are the last axis of its input and output

    @property
    def neutral(self) -> Moments:
        """What the trained layer normalises its activations by; 0 and 1 where it has normalised them itself."""
        if self.normalise is None:
            return self.source
        return Moments(torch.zeros_like(self.weight), torch.ones_like(self.weight))


class Layers(tuple[NormLayer, ...]):
    """Layers in the network's order, and tensors that hold all their channels side by side on the last axis."""

    @cached_property
    def paths(self) -> list[str]:
        """Of each layer."""
        return [layer.path for layer in self]

    @cached_property
    def channels(self) -> list[int]:
        """Of each layer."""
        return [layer.channels for layer in self]

    @cached_property
    def source(self) -> Moments:
        """Statistics of training, or of calibration, [C_total]."""
        return side_by_side([layer.source for layer in self])

    @cached_property
    def affine(self) -> Tensor:
        """Weights and biases of training, [2, C_total]."""
        if not self:
            return torch.empty(2, 0)
        with torch.inference_mode(mode=False):  # Else, first asked for there, it could take no part in a gradient.
            return torch.cat([torch.stack([layer.weight, layer.bias]) for layer in self], dim=-1)

    @cached_property
    def eps(self) -> Tensor:
        """[C_total]."""
        return torch.cat([layer.eps.expand(layer.channels) for layer in self] or [torch.empty(0)])

    @cached_property
    def owner(self) -> Tensor:
        """For each channel the number of its layer, [C_total]."""
        counts = torch.tensor(self.channels, dtype=torch.long)
        return torch.arange(len(self)).repeat_interleave(counts).to(self.eps.device)

    def rows(self, affine: Tensor) -> dict[str, Tensor]:
        """Weights and biases of all layers side by side, [S, 2, C_total], as each layer's, [S, 2, C], by its path."""
        return dict(zip(self.paths, affine.split(self.channels, dim=-1), strict=True))

    def apart(self, state: Tensors) -> dict[str, Tensors]:
        """A state with all layers side by side, [..., C_total], as one for each layer, [..., C], by its path."""
        pieces = {name: value.split(self.channels, dim=-1) for name, value in state.items()}
        return {layer.path: {name: piece[index] for name, piece in pieces.items()} for index, layer in enumerate(self)}

    def calibrated(self, moments: Moments | None) -> "Layers":
        """The same with the moments of layer and group norms, side by side [C_total of them]; None takes 0 and 1."""
        samples = [layer for layer in self if layer.normalise is not None]
        if moments is None:
            moments = side_by_side([layer.neutral for layer in samples])
        rows = zip(*(each.split([layer.channels for layer in samples]) for each in moments), strict=True)
        sources = {layer.path: Moments(*row) for layer, row in zip(samples, rows, strict=True)}
        return Layers(replace(layer, source=sources.get(layer.path, layer.source)) for layer in self)

    def together(self, layer_states: dict[str, Tensors]) -> Tensors:
        """The inverse of `apart`."""
        states = [layer_states[layer.path] for layer in self]
        names = states[0] if states else ()
        return {name: torch.cat([state[name] for state in states], dim=-1) for name in names}


def find_layers(model: nn.Module, reached: list[str]) -> tuple[Layers, dict[str, str]]:
    """The layers that can be served from outside, and for the others the reason why not.

    Args:
        model: any network.
        reached: paths of the modules that one forward pass runs, once for each time.
    """
    layers: list[NormLayer] = []
    refused: dict[str, str] = {}
    for path, module in model.named_modules():
        if not isinstance(module, (*BATCH_NORMS, *SAMPLE_NORMS)):
            continue
        if reason := _unusable(module, reached.count(path)):
            refused[path] = reason
        else:
            layers.append(_batch_norm(path, module) if isinstance(module, BATCH_NORMS) else _sample_norm(path, module))
    return Layers(layers), refused


def _unusable(module: Any, calls: int) -> str | None:
    if type(module).forward not in _BATCH_FORWARDS | _SAMPLE_FORWARDS.keys():
        return f"{type(module).__qualname__} has a forward of its own"
    if isinstance(module, BATCH_NORMS) and (module.running_mean is None or module.running_var is None):
        return "it keeps no running statistics (track_running_stats=False)"
    if len(getattr(module, "normalized_shape", (1,))) != 1:
        return f"it normalises over {len(module.normalized_shape)} axes"
    if calls != 1:
        return f"a forward pass runs it {calls} times"
    return None


def _batch_norm(path: str, module: Any) -> NormLayer:
    source = Moments(module.running_mean.detach(), module.running_var.detach())
    return NormLayer(
        eps=source.mean.new_tensor(module.eps), source=source, **_common(path, module, module.running_mean)
    )


def _sample_norm(path: str, module: Any) -> NormLayer:
    forward = type(module).forward
    channels = module.num_channels if isinstance(module, nn.GroupNorm) else module.normalized_shape[0]
    like = torch.ones(channels) if module.weight is None else module.weight.detach()
    normalise = _SAMPLE_FORWARDS[forward]
    return NormLayer(
        eps=like.new_zeros(()),
        source=Moments(torch.zeros_like(like), torch.ones_like(like)),
        normalise=lambda x: normalise(module, x),
        tokens=forward in _TOKENS,
        **_common(path, module, like),
    )


def _common(path: str, module: Any, like: Tensor) -> dict[str, Any]:
    weight, bias = module.weight, module.bias
    return {
        "path": path,
        "kind": type(module).__name__,
        "channels": len(like),
        "weight": torch.ones_like(like) if weight is None else weight.detach(),
        "bias": torch.zeros_like(like) if bias is None else bias.detach(),
        "forward": module.forward,
        "tail": tuple(
            part
            for part in (getattr(module, name, None) for name in ("drop", "act"))
            if isinstance(part, nn.Module) and not isinstance(part, nn.Identity)
        ),
    }
