"""Consecutive samples of a batch whose streams follow one recipe, and what a layer does to them.

Every method that adapts statistics is three steps at every layer: **moments** of the activations, a **plan** that turns
them into a line (the method; tiny tensors), and one pass over the activations to **apply** it. Only the plan differs. A
sample meets nothing but its own stream's rows, and so one forward pass carries many streams.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from .layers import Layers, NormLayer
from .member import NormMember, Tensors
from .moments import Batch, Moments, moments_of, moments_of_runs, pool, side_by_side


class Line(NamedTuple):
    """What a layer does to its activations: y = scale * x + shift, per channel."""

    scale: Tensor  # [C], [1, C], or [B, C] with a row for each row of the activations
    shift: Tensor

    def rows(self, counts: Sequence[int]) -> "Line":
        """Each row as often as `counts` says; a line with no rows of its own as one row."""
        repeats = torch.tensor(counts, device=self.scale.device)
        return Line(*(each.expand(len(counts), -1).repeat_interleave(repeats, dim=0) for each in self))


@dataclass(slots=True)
class Part:
    """Consecutive samples of a batch whose streams follow one recipe."""

    member: NormMember
    sizes: tuple[int, ...]  # images of each stream
    layer_states: dict[str, Tensors] = field(default_factory=dict)  # each [S, ..., C] by path; replaced as layers run
    affine: dict[str, Tensor] | None = None  # the streams' own weight and bias, each [S, 2, C] by path
    own_layers: Mapping[str, NormLayer] = field(default_factory=dict)  # by path, in place of the network's
    images: int = field(init=False)
    seen: dict[str, Moments] = field(init=False, default_factory=dict)  # what the plans were made from, by path

    def __post_init__(self) -> None:
        self.images = sum(self.sizes)

    @property
    def adapts(self) -> bool:
        """Whether anything at some layer may be another than in the network as it is."""
        return self.member.adapts or self.affine is not None or bool(self.own_layers)

    def touches(self, layer: NormLayer) -> bool:
        """Whether anything at the layer is not the source's."""
        return self.affine is not None or layer.path in self.layer_states or layer.path in self.own_layers

    def line(self, layer: NormLayer, x: Tensor) -> Line:
        """What `layer` does to this part's samples; moves their streams' state on."""
        return self.plan(layer, self.moments(layer, x), x.numel() // (self.images * layer.channels), self.rows(layer))

    def rows(self, layer: NormLayer) -> Tensor | None:
        """The streams' own weight and bias at the layer, [S, 2, C]."""
        return None if self.affine is None else self.affine[layer.path]

    def moments(self, layer: NormLayer, x: Tensor) -> Moments | None:
        """What the plan is made from, of each sample or of each stream; None where the member plans nothing."""
        path = layer.path
        if path not in self.layer_states:
            return None
        if len(self.sizes) == 1 and not self.member.per_sample:
            moments = moments_of(x)
        else:
            moments = moments_of_runs(x, self.runs(x.shape[0]))
        self.seen[path] = moments
        return moments

    def runs(self, rows: int) -> list[int]:
        """How many of the part's `rows` rows of activations each row of moments is of."""
        rows //= self.images  # One for an image, but in nets that fold tokens into the batch.
        return [rows * size for size in ((1,) * self.images if self.member.per_sample else self.sizes)]

    def plan(self, layer: NormLayer, moments: Moments | None, positions: int, affine: Tensor | None) -> Line:
        """The member's choice, as a line: [C], or [1, S or images, C]."""
        layer = self.own_layers.get(layer.path, layer)
        mean, var = layer.neutral if moments is None else self._choose(layer, moments, positions)
        weight, bias = (layer.weight, layer.bias) if affine is None else affine.unbind(1)
        if affine is not None and 1 < len(self.sizes) < len(mean) == self.images:
            weight, bias = Line(weight, bias).rows(self.sizes)
        scale = (var + layer.eps).rsqrt_() * weight
        return Line(scale, torch.addcmul(bias, mean, scale, value=-1))

    def _choose(self, layer: NormLayer, moments: Moments, positions: int) -> Moments:
        batch = Batch(moments, self.sizes, positions, layer.eps)
        chosen, self.layer_states[layer.path] = self.member.plan(layer.source, batch, self.layer_states[layer.path])
        return chosen

    def spread(self, line: Line, rows: int, *, even_one: bool = False) -> Line:
        """The line with a row for each of the part's `rows` rows of activations, unless one row serves all."""
        if not even_one and (line.scale.dim() == 1 or len(line.scale) in (1, rows)):
            return line
        each = rows // self.images  # One, but in nets that fold tokens into the batch.
        several = line.scale.dim() > 1 and len(line.scale) == self.images
        return line.rows([each] * self.images if several else [size * each for size in self.sizes])


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """The moments that a part's streams showed at each layer."""

    layers: Layers
    part: Part

    def of(self, stream: int) -> Moments:
        """One stream's, all layers side by side, [C_total]."""
        rows = side_by_side([self.part.seen[layer.path] for layer in self.layers])
        if self.part.member.per_sample:
            rows = pool(rows, self.part.sizes)
        return Moments(*(torch.atleast_2d(each)[stream] for each in rows))


def apply(x: Tensor, line: Line, out: Tensor | None = None) -> Tensor:
    """One pass over the activations [B, C, ...]; writing over `x` saves the memory traffic of a new tensor."""
    scale, shift = facing(x, line)
    return torch.addcmul(shift, x, scale, out=out)


def facing(x: Tensor, rows: Sequence[Tensor]) -> list[Tensor]:
    """Rows [C] or [B, C], shaped to meet activations [B, C, ...]."""
    tail = (1,) * (x.dim() - 2)
    return [each.view(*each.shape, *tail) for each in rows]
