"""Small networks as a server hosts them, and their packages."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from normstream.adaptation import HostedModel, Preprocessing
from normstream.adaptation.export import export
from normstream.clients.edge.package import Package

PREPROCESSING = Preprocessing(input_size=(3, 32, 32))


class Convolutions(nn.Module):
    """Batch norms after convolutions, the last of them on 1x1 maps."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(16, 12, 1),
            nn.BatchNorm2d(12),
        )
        self.head = nn.Linear(12, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).flatten(1))


class Tokens(nn.Module):
    """Layer norms alone."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first = nn.Conv2d(3, 16, 8, stride=8), nn.LayerNorm(16)
        self.mix, self.second = nn.Linear(16, 16), nn.LayerNorm(16)
        self.head = nn.Linear(16, 7)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.first(self.stem(x).flatten(2).transpose(1, 2))
        return self.head(self.second(tokens + self.mix(tokens).relu()).mean(1))


class Both(nn.Module):
    """A batch norm, then a layer norm, then a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first = nn.Conv2d(3, 16, 8, stride=8), nn.BatchNorm2d(16)
        self.second, self.mix = nn.LayerNorm(16), nn.Conv2d(16, 10, 2, stride=2)
        self.third, self.head = nn.BatchNorm2d(10), nn.Linear(10, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.stem(x))
        x = self.second(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.head(self.third(self.mix(x)).relu().mean((2, 3)))


def host(network: type[nn.Module], seed: int = 0) -> HostedModel:
    """A network as after some training: nothing at its neutral value."""
    torch.manual_seed(seed)
    made = network()
    for name, value in made.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
        elif value.is_floating_point():
            value.add_(torch.randn_like(value), alpha=0.1)
    return HostedModel(made.eval(), network.__name__.lower(), PREPROCESSING)


def packaged(hosted: HostedModel, folder: Path) -> Package:
    return Package.open(export(hosted, folder))


def moved(package: Package, seed: int = 0, by: float = 0.1) -> dict[str, np.ndarray]:
    """Parameters as an adaptation might leave them."""
    generator = np.random.default_rng(seed)
    return {
        name: (value * (1 + by * generator.uniform(-1, 1, value.shape))).astype(np.float32)
        for name, value in package.source.items()
    }
