"""One turn of streams that follow the same recipe: their images, and the network to run on them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from .hosting import HostedModel
from .member import NormMember, Tensors
from .part import Seen


class Pass(NamedTuple):
    """What one forward pass gives."""

    logits: Tensor  # [B, classes]
    features: Tensor | None  # [B, D]
    norm: Tensors  # the norm member's states after it, each [S, ..., C_total]
    seen: Seen  # the moments of the batch


@dataclass(frozen=True, slots=True, eq=False)
class Turn:
    """Streams and their images. An update member runs the network through it, as often as its method needs."""

    hosted: HostedModel
    norm_member: NormMember
    norm: Tensors  # states of the norm member before the turn, each [S, ..., C_total]
    sizes: tuple[int, ...]  # S numbers: how many images are each stream's
    images: Tensor  # [B, 3, H, W], one stream's after the other's

    def run(self, affine: Tensor, images: Tensor | None = None) -> Pass:
        """A forward pass with each stream's own parameters; norm states are read, and given back moved.

        Args:
            affine: weights and biases of all layers side by side, [S, 2, C_total].
            images: in place of the turn's own, as many; made from them in some way.
        """
        hosted = self.hosted
        planned = hosted.planned(self.norm_member)
        part = hosted.part(self.norm_member, self.sizes, self.norm, affine)
        logits, features = hosted.forward(self.images if images is None else images, [part])
        return Pass(logits, features, planned.together(part.layer_states), Seen(planned, part))

    def of(self, streams: Sequence[int], images: Tensor, sizes: Sequence[int]) -> "Turn":
        """Some of the streams, with other images: as many as `sizes` says for each."""
        rows = torch.tensor(streams, device=images.device)
        norm = {name: value[rows] for name, value in self.norm.items()}
        return replace(self, norm=norm, sizes=tuple(sizes), images=images)

    def split(self, values: Tensor) -> tuple[Tensor, ...]:
        """Values of images [B, ...], stream by stream."""
        runs: tuple[Tensor, ...] = values.split(list(self.sizes))
        return runs

    def mean(self, values: Tensor, keep: Tensor | None = None) -> Tensor:
        """Mean of values [B] over each stream's images, or over those it keeps [B]; 0 where it keeps none. [S].

        Streams are summed apart, so what is not finite in one does not reach another.
        """
        if keep is None:
            return torch.stack([run.mean() for run in self.split(values)])
        kept = torch.where(keep, values, 0.0)
        pairs = zip(self.split(kept), self.split(keep), strict=True)
        return torch.stack([run.sum() / mask.sum().clamp(min=1) for run, mask in pairs])

    def any(self, keep: Tensor) -> Tensor:
        """Whether each stream keeps an image, [S]; `keep` is [B]."""
        return torch.stack([mask.any() for mask in self.split(keep)])

    def each(self, rows: Tensor) -> Tensor:
        """A row for each image, from a row for each stream [S, ...]: [B, ...]."""
        return rows.repeat_interleave(torch.tensor(self.sizes, device=rows.device), dim=0)
