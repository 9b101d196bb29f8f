"""Convolutions made ready for one image: the same bits, and only where they are."""

import pytest
import torch
from torch import nn

from normstream.adaptation.packing import Packed, pack

CHANNELS_LAST = torch.channels_last


class Convolutions(nn.Module):
    """Of every kind that networks use."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.wide = nn.Conv2d(16, 16, 3, padding=2, dilation=2, bias=False)
        self.depthwise = nn.Conv2d(16, 16, 5, padding=2, groups=16)
        self.same = nn.Conv2d(16, 16, 3, padding="same")
        self.valid = nn.Conv2d(16, 16, 3, padding="valid")
        self.mirrored = nn.Conv2d(16, 16, 3, padding=1, padding_mode="reflect")
        self.pointwise = nn.Conv2d(16, 32, 1)

    def forward(self, x):
        for module in self.children():
            x = module(x)
        return x


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Convolutions().eval().requires_grad_(False).to(memory_format=CHANNELS_LAST)


def batch(size):
    return torch.randn(size, 3, 24, 24).contiguous(memory_format=CHANNELS_LAST)


def test_same_bits_at_every_batch_size(network):
    batches = [batch(size) for size in (1, 1, 2, 5)]
    with torch.inference_mode():
        before = [network(images) for images in batches]
        pack(network, batch(1))
        after = [network(images) for images in batches]
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one, other)
    packed = {name for name, module in network.named_children() if isinstance(module.forward, Packed)}
    assert "plain" in packed
    assert not packed & {"same", "valid", "mirrored"}


def test_gradients_as_before(network):
    images = batch(1).requires_grad_()
    (before,) = torch.autograd.grad(network(images).square().sum(), images)
    pack(network, batch(1))
    (after,) = torch.autograd.grad(network(images).square().sum(), images)
    assert torch.equal(before, after)


def test_ready_outside_inference_mode(network):
    pack(network, batch(1))
    with torch.no_grad():
        assert network(batch(1)).shape == (1, 32, 10, 10)


def test_another_number_type_is_left_alone(network):
    pack(network.double(), batch(1).double())
    assert not any(isinstance(module.forward, Packed) for module in network.children())
