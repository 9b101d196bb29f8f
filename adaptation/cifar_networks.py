"""ResNets for images of 32x32, in timm's registry as any other network: none there has weights or a size for CIFAR."""

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, ResNet
from torch import nn

_CIFAR = {
    "num_classes": 10,
    "input_size": (3, 32, 32),
    "pool_size": (4, 4),
    "crop_pct": 1.0,
    "interpolation": "bicubic",
    "mean": (0.4914, 0.4822, 0.4465),
    "std": (0.2470, 0.2435, 0.2616),
    "first_conv": "conv1",
    "classifier": "fc",
}
default_cfgs = generate_default_cfgs({"cifar_resnet10.untrained": _CIFAR, "cifar_resnet18.untrained": _CIFAR})


@register_model
def cifar_resnet10(pretrained: bool = False, **options: Any) -> nn.Module:
    """One basic block per stage, widths 64, 128, 192 and 256: 1.97 M parameters."""
    return _resnet("cifar_resnet10", (1, 1, 1, 1), pretrained, channels=(64, 128, 192, 256), **options)


@register_model
def cifar_resnet18(pretrained: bool = False, **options: Any) -> nn.Module:
    """The ResNet-18 of published experiments of continual learning on CIFAR: 11.2 M parameters."""
    return _resnet("cifar_resnet18", (2, 2, 2, 2), pretrained, **options)


def _resnet(name: str, layers: tuple[int, ...], pretrained: bool, **options: Any) -> nn.Module:
    """With a stem for small images: one convolution of 3x3, no pooling."""
    network: nn.Module = build_model_with_cfg(
        ResNet, name, pretrained, block=BasicBlock, layers=layers, **{"num_classes": 10, **options}
    )
    network.conv1 = nn.Conv2d(options.get("in_chans", 3), 64, kernel_size=3, stride=1, padding=1, bias=False)
    network.maxpool = nn.Identity()
    return network
