"""Networks of timm as they are built there, untrained: what a small network of our own might be too kind to show."""

import timm
import torch
from sharp_net import sharpen
from small_net import SIZE, images

from normstream.adaptation import HostedModel, Preprocessing
from normstream.adaptation.calibration import calibrate


def host_timm(architecture: str, **changes: object) -> HostedModel:
    """Sure enough of its answers for every filter, and calibrated on some images."""
    torch.manual_seed(0)
    network = timm.create_model(architecture, num_classes=5, **changes)
    hosted = HostedModel(sharpen(network, 20), architecture, Preprocessing(input_size=SIZE))
    hosted.calibration = calibrate(hosted, [images(16, seed=50)])
    return hosted


def host_vit() -> HostedModel:
    """Twelve blocks, 25 layer norms, on 2x2 patches."""
    return host_timm("vit_tiny_patch16_224", img_size=SIZE[1], patch_size=SIZE[1] // 2)


def host_group_norm() -> HostedModel:
    """A ResNet of bottlenecks, one a stage, with 17 group norms."""
    return host_timm("resnet50_gn", layers=(1, 1, 1, 1))
