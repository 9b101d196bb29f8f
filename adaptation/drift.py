"""How far a batch's moments lie from the source's, layer by layer."""

from torch import Tensor

from .hosting import HostedModel
from .moments import Moments, side_by_side


def drift(hosted: HostedModel, seen: dict[str, Moments]) -> Tensor:
    """Symmetric Kullback-Leibler divergence of Gaussians, mean over each layer's channels.

    J = 1/2 [ (var_1 + d^2) / var_2 + (var_2 + d^2) / var_1 ] - 1 with d = mean_1 - mean_2, in nats: 0 where a batch
    looks as in training.

    Args:
        hosted: gives the layers and their source statistics.
        seen: the batch's moments at each layer, [S, C].

    Returns:
        [S, layers], in the order of the model's layers.
    """
    source, batch = hosted.source, side_by_side([seen[layer.path] for layer in hosted.layers])
    var_1, var_2 = source.var + hosted.eps, batch.var + hosted.eps
    square = (batch.mean - source.mean).square()
    divergence = 0.5 * ((var_1 + square) / var_2 + (var_2 + square) / var_1) - 1
    sums = divergence.new_zeros(len(divergence), len(hosted.layers)).index_add_(1, hosted.layer_of, divergence)
    return sums / sums.new_tensor(hosted.channels)
