"""Small networks that are sure of their answers, hosted and plain, and streams of them.

The filters of update members drop what a network is unsure of, and an untrained one is unsure of everything.
"""

import math

import torch
from small_net import SmallNet, TokenNet, host_small, host_tokens, randomised
from torch import Tensor, nn

from normstream.adaptation import HostedModel, Recipe, Request, Result, StreamState, initial_state, step

NORMS = {"small": "bn1", "tokens": "source"}
CLASSES = 5


def sharpen(network: nn.Module, by: float) -> nn.Module:
    with torch.no_grad():
        classifier = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
        classifier.weight.mul_(by)
    return network


def sharp_host(kind: str, by: float = 5.0) -> HostedModel:
    hosted = host_small() if kind == "small" else host_tokens()
    sharpen(hosted.network, by)
    return hosted


class Plain:
    """The same network as plain torch has it: statistics of the batch, a torch optimiser on the affine parameters."""

    def __init__(self, kind: str, lr: float, by: float = 5.0) -> None:
        torch.manual_seed(0)
        network = randomised(SmallNet() if kind == "small" else TokenNet(), 0)
        self.network = sharpen(network, by).requires_grad_(False).train()
        kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)
        self.norms = [module.requires_grad_() for module in self.network.modules() if isinstance(module, kinds)]
        self.parameters = [parameter for norm in self.norms for parameter in (norm.weight, norm.bias)]
        self.optimizer = torch.optim.SGD(self.parameters, lr, momentum=0.9)

    @property
    def affine(self) -> Tensor:
        rows = [torch.cat([getattr(norm, name) for norm in self.norms]) for name in ("weight", "bias")]
        return torch.stack(rows).detach()


def probabilities(logits: Tensor) -> list[Tensor]:
    return list(logits.softmax(1))


def plain_entropy(p: Tensor) -> Tensor:
    return -sum(p[c] * torch.log(p[c]) for c in range(len(p)))


def recipe(kind: str, name: str, norm: str | None = None, **parameters: object) -> Recipe:
    """With the published rate, so that a torch optimiser can follow."""
    update = {"name": name, "rate": "published"} | parameters
    return Recipe.parse({"norm": {"name": norm or NORMS[kind]}, "update": update})


def run(hosted: HostedModel, recipe: Recipe, batches: list[Tensor]) -> list[Result]:
    """One stream alone, batch after batch."""
    state, results = initial_state(hosted, recipe), []
    for batch in batches:
        (result,) = step(hosted, [Request(state, batch)])
        state = result.state
        results.append(result)
    return results


def together(hosted: HostedModel, recipe: Recipe, streams: list[list[Tensor]]) -> list[StreamState]:
    """Many streams side by side, and what state they end in."""
    states = [initial_state(hosted, recipe) for _ in streams]
    for batches in zip(*streams, strict=True):
        requests = [Request(state, batch) for state, batch in zip(states, batches, strict=True)]
        states = [result.state for result in step(hosted, requests)]
    return states


def turn_of(hosted: HostedModel, recipe: Recipe, batches: list[Tensor]):
    """What a member is given at a step of several streams."""
    from normstream.adaptation.tensor_slots import slot
    from normstream.adaptation.turn import Turn

    first = initial_state(hosted, recipe)
    norm = {name: value.expand(len(batches), *value.shape) for name, value in slot(first.tensors, "norm").items()}
    return Turn(hosted, recipe.norm, norm, tuple(len(batch) for batch in batches), torch.cat(batches))


def memory_of(state: StreamState, name: str) -> Tensor:
    return state.tensors[f"update.memory.{name}"]


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


LN = math.log(CLASSES)
