"""The model that the streams start from."""

from pathlib import Path

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file

from normstream.adaptation import HostedModel, HostingError, ModelSpec, Preprocessing, load_model
from normstream.adaptation.bench.errors import BenchError
from normstream.adaptation.cifar_networks import cifar_resnet10
from normstream.adaptation.recipe import explain

DEFAULT = "tf_efficientnet_lite0"


def host_timm(name: str | None) -> HostedModel:
    """A model for photographs, by the name or the specification that `normstream serve --model` takes too."""
    try:
        return load_model(ModelSpec.parse(name or DEFAULT))
    except ValidationError as error:
        raise BenchError(f"--model: {explain(error)}") from None
    except HostingError as error:
        raise BenchError(f"--model: {error}") from None


def host_cifar(weights: Path) -> HostedModel:
    """The CIFAR-10 network with weights from a safetensors file."""
    network = cifar_resnet10()
    try:
        network.load_state_dict(load_file(weights))
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise BenchError(f"{str(weights)!r} holds no weights of the CIFAR-10 ResNet-10: {reason}") from None
    return HostedModel(network, weights.stem, Preprocessing.of(network))
