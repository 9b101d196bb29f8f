"""Small networks with every kind of layer that is served."""

import torch
from torch import Tensor, nn

from normstream.adaptation import HostedModel, Preprocessing

SIZE = (3, 16, 16)


class SmallNet(nn.Module):
    """Convolutions with 2-d batch norms, one of them on 1x1 maps, and a 1-d batch norm before the classifier."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 12, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(12),
            nn.ReLU(),
        )
        self.squeeze = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(12, 10, 1), nn.BatchNorm2d(10), nn.Flatten())
        self.head = nn.Sequential(nn.BatchNorm1d(10), nn.Linear(10, classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.squeeze(self.body(x)))


def randomised(network: nn.Module, seed: int = 0) -> nn.Module:
    """Weights and statistics as after some training: nothing at its neutral value."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in network.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 1.5, generator=generator)
        elif value.is_floating_point():
            value.add_(torch.randn(value.shape, generator=generator), alpha=0.1)
    return network


def host_small(seed: int = 0) -> HostedModel:
    torch.manual_seed(seed)
    return HostedModel(randomised(SmallNet(), seed), "small", Preprocessing(input_size=SIZE))


def images(count: int, seed: int = 0, size: tuple[int, int, int] = SIZE) -> Tensor:
    return torch.randn(count, *size, generator=torch.Generator().manual_seed(seed))
