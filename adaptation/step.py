"""One adaptation step: states and images in, logits and new states out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .hosting import HostedModel, Part
from .member import Tensors
from .moments import Moments, side_by_side
from .recipe import Recipe
from .state import StreamState, in_slot, slot


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """Images of one stream, with the state that the stream is in."""

    state: StreamState
    images: Tensor  # [B, C, H, W], preprocessed


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """The answer to a request. Nothing that was given has changed."""

    state: StreamState
    logits: Tensor  # [B, classes]
    seen: Moments | None  # of the batch, all layers side by side, [C_total]; None when the recipe looks at no batch


def step(hosted: HostedModel, requests: Sequence[Request]) -> list[Result]:
    """Serve many streams, each by its own recipe and state, in one forward pass.

    The results are those of serving the streams one after another. A stream appears at most once: its second request
    needs the state that its first one leaves.

    Raises:
        ValueError: when a state belongs to another model, or images have another shape than the model's input.
    """
    for request in requests:
        _check(hosted, request)
    groups = _by_recipe(requests)
    order = [index for group in groups for index in group]
    with torch.inference_mode():
        parts = [_part(hosted, [requests[index] for index in group]) for group in groups]
        logits = hosted.forward(torch.cat([requests[index].images for index in order]), parts)
        rows = logits.split([len(requests[index].images) for index in order])
        results = [result for part in parts for result in _outcomes(hosted, part)]
    answers = {
        index: Result(_advance(requests[index].state, tensors), logits, seen)
        for index, logits, (tensors, seen) in zip(order, rows, results, strict=True)
    }
    return [answers[index] for index in range(len(requests))]


def _check(hosted: HostedModel, request: Request) -> None:
    if request.state.fingerprint != hosted.fingerprint:
        raise ValueError(
            f"the state belongs to model {request.state.model!r} ({request.state.fingerprint}),"
            f" not to {hosted.name!r} ({hosted.fingerprint})"
        )
    shape, expected = tuple(request.images.shape), hosted.preprocessing.input_size
    if len(shape) != 4 or shape[0] < 1 or shape[1:] != expected:
        raise ValueError(
            f"images have shape {shape}; {hosted.name!r} takes [B, {', '.join(map(str, expected))}], B >= 1"
        )


def _by_recipe(requests: Sequence[Request]) -> list[list[int]]:
    """Indices of the requests, those of one recipe together: a part of a batch follows one member."""
    groups: dict[Recipe, list[int]] = {}
    for index, request in enumerate(requests):
        groups.setdefault(request.state.recipe, []).append(index)
    return list(groups.values())


def _part(hosted: HostedModel, group: Sequence[Request]) -> Part:
    states = [slot(request.state.tensors, "norm") for request in group]
    stacked: Tensors = {name: torch.stack([state[name] for state in states]) for name in states[0]}
    return Part(group[0].state.recipe.norm, tuple(len(request.images) for request in group), hosted.apart(stacked))


def _outcomes(hosted: HostedModel, part: Part) -> Iterator[tuple[Tensors, Moments | None]]:
    """For each stream of the part its new tensors, and the moments of its batch."""
    states, seen = hosted.together(part.layer_states), None
    if part.seen:
        seen = side_by_side([part.seen[layer.path] for layer in hosted.layers])
    for stream in range(len(part.sizes)):
        # A row of a stack would keep the whole stack alive, with the states of other streams.
        tensors = {name: value[stream].clone() for name, value in states.items()}
        yield tensors, seen and Moments(*(torch.atleast_2d(each)[stream] for each in seen))


def _advance(state: StreamState, tensors: Tensors) -> StreamState:
    return replace(state, step=state.step + 1, tensors=in_slot(tensors, "norm"))
