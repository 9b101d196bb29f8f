"""What a stream has learnt, as the layers that serve many streams in one forward pass take it."""

import torch
from torch import Tensor

from ..hosting import HostingError
from ..member import Tensors
from ..moments import Moments, side_by_side
from .adab2n import AdaB2N
from .batch_norm import BatchNorm
from .learner import Learner
from .network import Slot


def learnt_affine(learner: Learner, tensors: Tensors) -> Tensor:
    """Weights and biases of all norm layers side by side, [2, C_total], in the order of the model's layers.

    Raises:
        HostingError: when the stream's network differs from the hosted one in more than norm layers and head.
    """
    recipe = learner.recipe
    if recipe.learns == "all" or not isinstance(recipe.norm, AdaB2N | BatchNorm | None):
        raise HostingError(
            "a stream that learns all weights, or with norm gn or cn, has a network of its own; only its learner can"
            " predict for it"
        )
    layers = learner.hosted.layers
    weight = [tensors.get(f"network.{layer.path}.weight", layer.weight) for layer in layers]
    bias = [tensors.get(f"network.{layer.path}.bias", layer.bias) for layer in layers]
    return torch.stack([torch.cat(weight), torch.cat(bias)])


def learnt_statistics(learner: Learner, tensors: Tensors) -> Moments:
    """What batch norms normalise by, side by side, [C_total of them]: the source statistics of the stream from now."""
    return side_by_side(
        [
            Moments(
                tensors.get(f"network.{layer.path}.{Slot.MEAN}", layer.source.mean),
                tensors.get(f"network.{layer.path}.{Slot.VAR}", layer.source.var),
            )
            for layer in learner.hosted.batch_norms
        ]
    )
