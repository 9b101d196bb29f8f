"""What a stream has learnt, as the layers that serve many streams in one forward pass take it."""

from dataclasses import replace

from torch import Tensor

from ..hosting import HostedModel, HostingError
from ..layers import Layers, NormLayer
from ..member import Tensors
from ..moments import Moments
from .learning import Learning
from .network import Slot


def learnt_layers(hosted: HostedModel, learning: Learning, tensors: Tensors) -> Layers:
    """The model's norm layers with the stream's weights and biases, and its running statistics as the source's.

    Those of the model itself, where the stream has none of its own.

    Raises:
        HostingError: when the stream's network differs from the hosted one in more than norm layers and head.
    """
    if learning.own_network:
        raise HostingError(
            "a stream that learns all weights, or with norm gn or cn, has a network of its own; only its learner can"
            " predict for it"
        )
    if not any(name.startswith("network.") for name in tensors):
        return hosted.layers

    def own(layer: NormLayer) -> NormLayer:
        def of(name: str, trained: Tensor) -> Tensor:
            return tensors.get(f"network.{layer.path}.{name}", trained)

        source = Moments(of(Slot.MEAN, layer.source.mean), of(Slot.VAR, layer.source.var))
        return replace(layer, weight=of("weight", layer.weight), bias=of("bias", layer.bias), source=source)

    return Layers(map(own, hosted.layers))
