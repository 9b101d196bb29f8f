"""How far a batch's moments lie from the source's, layer by layer."""

from .hosting import HostedModel
from .moments import Moments


def drift(hosted: HostedModel, seen: Moments | None) -> dict[str, float]:
    """Symmetric Kullback-Leibler divergence of Gaussians, mean over each layer's channels, by the layer's path.

    J = 1/2 [ (var_1 + d^2) / var_2 + (var_2 + d^2) / var_1 ] - 1 with d = mean_1 - mean_2, in nats: 0 where a batch
    looks as in training.

    Args:
        hosted: gives the layers and their source statistics.
        seen: the batch's moments, all layers side by side, [C_total]; with None there is no drift to tell.
    """
    if seen is None:
        return {}
    var_1, var_2 = hosted.source.var + hosted.eps, seen.var + hosted.eps
    square = (seen.mean - hosted.source.mean).square()
    divergence = 0.5 * ((var_1 + square) / var_2 + (var_2 + square) / var_1) - 1
    sums = divergence.new_zeros(len(hosted.layers)).index_add_(0, hosted.layer_of, divergence).tolist()
    return {layer.path: total / layer.channels for layer, total in zip(hosted.layers, sums, strict=True)}
