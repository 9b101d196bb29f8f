"""What travels to an edge: the parameters and statistics of a stream, side by side."""

import torch
from torch import Tensor

from .hosting import HostedModel
from .member import Tensors
from .standing import folded
from .state import StreamState
from .tensor_slots import slot
from .update_member import UpdateMember


def edge_parameters(hosted: HostedModel, state: StreamState) -> Tensors:
    """All that an edge's copy of the network needs to answer as a stream of any recipe does without a batch.

    Layer and group norms have no statistics to send: what their norm member does is folded into weight and bias.

    Returns:
        `weight` and `bias` of all layers side by side, float32 [C_total] in the order of `hosted.layers`; and where
        there are batch norms `mean` and `var` (biased), [C_total] of them, in the order of `hosted.batch_norms`.
    """
    recipe, norm = state.recipe, slot(state.tensors, "norm")
    with torch.no_grad():
        affine = _serving(hosted, state)
        if recipe.norm.batch_agnostic:
            affine = folded(hosted, recipe.norm, affine, norm)
        parameters = dict(zip(("weight", "bias"), affine, strict=True))
        if hosted.batch_norms:
            source, own = hosted.batch_norms.source, recipe.norm.adapts and not recipe.norm.batch_agnostic
            parameters |= (recipe.norm.standing(source, norm) if own else source)._asdict()
        return {name: value.detach().float().cpu().clone() for name, value in parameters.items()}


def _serving(hosted: HostedModel, state: StreamState) -> Tensor:
    """The parameters that answer, [2, C_total]."""
    member, tensors = state.recipe.update, slot(state.tensors, "update")
    if isinstance(member, UpdateMember):
        return member.serving(tensors["affine"], slot(tensors, "memory"))
    return tensors.get("affine", hosted.layers.affine)
