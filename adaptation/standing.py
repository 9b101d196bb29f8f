"""What a stream's network is when nothing of a batch may be used: one line at every layer, and nothing to measure."""

import torch
from torch import Tensor

from .hosting import HostedModel
from .member import NormMember, Tensors
from .moments import Moments, side_by_side
from .norm.source import Source


def standing_moments(hosted: HostedModel, member: NormMember, norm: Tensors) -> Moments:
    """What each layer normalises its activations by, all layers side by side, [..., C_total].

    Args:
        hosted: the model.
        member: of the norm slot.
        norm: its state, each [..., C_total of the layers that it plans].
    """
    planned = hosted.planned(member)
    mean, var = member.standing(planned.source, norm)
    chosen = planned.apart({"mean": mean, "var": var})
    rows = [Moments(**chosen[layer.path]) if layer.path in chosen else layer.neutral for layer in hosted.layers]
    leading = mean.shape[:-1]
    return side_by_side([Moments(*(each.expand(*leading, -1) for each in row)) for row in rows])


def folded(hosted: HostedModel, member: NormMember, affine: Tensor, norm: Tensors) -> Tensor:
    """Weights and biases that do with the source's statistics what `affine` does with the standing ones.

    Args:
        hosted: the model.
        member: of the norm slot.
        affine: [..., 2, C_total].
        norm: state of the member, each [..., C_total].

    Returns:
        [..., 2, C_total].
    """
    chosen, source = standing_moments(hosted, member, norm), side_by_side([layer.neutral for layer in hosted.layers])
    weight, bias = affine.unbind(-2)
    scale = weight * (chosen.var + hosted.layers.eps).rsqrt()
    return torch.stack(
        torch.broadcast_tensors(
            scale * (source.var + hosted.layers.eps).sqrt(), torch.addcmul(bias, source.mean - chosen.mean, scale)
        ),
        dim=-2,
    )


def predict(hosted: HostedModel, member: NormMember, affine: Tensor, norm: Tensors, images: Tensor) -> Tensor:
    """Logits [B, classes] of one stream's images by its standing statistics; arguments as for `folded`."""
    rows = folded(hosted, member, affine, norm).unsqueeze(0)
    return hosted.forward(images, [hosted.part(Source(), (len(images),), {}, rows)]).logits
