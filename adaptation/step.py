"""One adaptation step: states and images in, predictions and new states out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .hosting import HostedModel
from .member import Tensors
from .norm.source import Source
from .part import Part, Seen
from .recipe import Recipe
from .standing import folded
from .state import StreamState, in_slot, slot
from .taught_member import TaughtMember
from .turn import Turn
from .update_member import UpdateMember
from .updating import Report, update


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """Images of one stream, with the state that the stream is in."""

    state: StreamState
    images: Tensor  # [B, C, H, W], preprocessed
    adapt: bool = True  # False predicts with the state, and leaves it as it is


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """The answer to a request. Nothing that was given has changed."""

    state: StreamState
    logits: Tensor  # [B, classes]; their softmax is the prediction
    seen: Seen | None = None  # the moments of the batch, with `stream`; None when the recipe looks at no batch
    stream: int = 0
    report: Report | None = None  # what the update slot did; None where it is off


def step(hosted: HostedModel, requests: Sequence[Request]) -> list[Result]:
    """Serve many streams, each by its own recipe and state.

    The results are those of serving the streams one after another. A stream appears at most once: its second request
    needs the state that its first one leaves. Streams that move no parameters share one forward pass whatever their
    recipes; streams that do share forward and backward passes with those of the same recipe.

    Raises:
        ValueError: when a state belongs to another model, images have another shape than the model's input, or a
            stream that has a teacher is to adapt: it predicts only, by its standing statistics.
    """
    for request in requests:
        _check(hosted, request)
    groups = _by_recipe(requests)
    updating = [group for group in groups if requests[group[0]].adapt and requests[group[0]].state.recipe.update]
    forward_only = [group for group in groups if group not in updating]
    answers: dict[int, Result] = {}
    if forward_only:
        with torch.inference_mode():
            answers |= _forward(hosted, requests, forward_only)
    for group in updating:
        answers |= _update(hosted, requests, group)
    return [answers[index] for index in range(len(requests))]


def _check(hosted: HostedModel, request: Request) -> None:
    if request.state.fingerprint != hosted.fingerprint:
        raise ValueError(
            f"the state belongs to model {request.state.model!r} ({request.state.fingerprint}),"
            f" not to {hosted.name!r} ({hosted.fingerprint})"
        )
    member = request.state.recipe.update
    if request.adapt and isinstance(member, TaughtMember):
        raise ValueError(f"{member.name!r} learns from uploaded samples, not from predictions; adapt=False predicts")
    shape, expected = tuple(request.images.shape), hosted.preprocessing.input_size
    if len(shape) != 4 or shape[0] < 1 or shape[1:] != expected:
        raise ValueError(
            f"images have shape {shape}; {hosted.name!r} takes [B, {', '.join(map(str, expected))}], B >= 1"
        )


def _by_recipe(requests: Sequence[Request]) -> list[list[int]]:
    """Indices of the requests, those of one recipe together."""
    groups: dict[tuple[Recipe, bool], list[int]] = {}
    for index, request in enumerate(requests):
        groups.setdefault((request.state.recipe, request.adapt), []).append(index)
    return list(groups.values())


def _forward(hosted: HostedModel, requests: Sequence[Request], groups: list[list[int]]) -> dict[int, Result]:
    """Answers of streams whose parameters stay, in one forward pass."""
    order = [index for group in groups for index in group]
    parts = [_part(hosted, [requests[index] for index in group]) for group in groups]
    logits, features = hosted.forward(torch.cat([requests[index].images for index in order]), parts)
    outcomes = (outcome for part in parts for outcome in _outcomes(hosted, part))
    rows = _rows([len(requests[index].images) for index in order], logits, features)
    return {
        index: _result(hosted, requests[index], *row, norm, Result(requests[index].state, logits, seen, stream))
        for index, row, (norm, seen, stream) in zip(order, rows, outcomes, strict=True)
    }


def _update(hosted: HostedModel, requests: Sequence[Request], group: list[int]) -> dict[int, Result]:
    """Answers of streams of one recipe whose parameters move."""
    chosen = [requests[index] for index in group]
    recipe = chosen[0].state.recipe
    assert isinstance(recipe.update, UpdateMember)
    sizes = tuple(len(request.images) for request in chosen)
    turn = Turn(hosted, recipe.norm, _stacked(chosen, "norm"), sizes, torch.cat([each.images for each in chosen]))
    answer, norm, tensors, reports = update(recipe.update, turn, _stacked(chosen, "update"))
    with torch.no_grad():
        features = None if answer.features is None else answer.features.detach()
        results = {}
        for stream, (index, row) in enumerate(zip(group, _rows(sizes, answer.logits.detach(), features), strict=True)):
            mine = {name: value[stream].clone() for name, value in norm.items()}
            moved = in_slot({name: value[stream].clone() for name, value in tensors.items()}, "update")
            draft = Result(requests[index].state, answer.logits, answer.seen, stream, reports[stream])
            results[index] = _result(hosted, requests[index], *row, in_slot(mine, "norm") | moved, draft)
    return results


def _result(
    hosted: HostedModel, request: Request, logits: Tensor, features: Tensor | None, tensors: Tensors, draft: Result
) -> Result:
    """The draft with its own rows of the answer, adjusted by the output member, and its new state."""
    state = request.state
    if state.recipe.output is not None:
        logits, memory = state.recipe.output.adjust(hosted, logits, features, slot(state.tensors, "output"))
        tensors = tensors | in_slot(memory, "output")
    if request.adapt:
        state = replace(state, step=state.step + 1, tensors=tensors)
    return replace(draft, state=state, logits=logits)


def _rows(sizes: Sequence[int], logits: Tensor, features: Tensor | None) -> list[tuple[Tensor, Tensor | None]]:
    """Logits and features of each stream."""
    theirs = [None] * len(sizes) if features is None else features.split(list(sizes))
    return list(zip(logits.split(list(sizes)), theirs, strict=True))


def _stacked(group: Sequence[Request], name: str) -> Tensors:
    states = [slot(request.state.tensors, name) for request in group]
    return {key: torch.stack([state[key] for state in states]) for key in states[0]}


def _part(hosted: HostedModel, group: Sequence[Request]) -> Part:
    recipe, sizes = group[0].state.recipe, tuple(len(request.images) for request in group)
    if isinstance(recipe.update, TaughtMember):
        own = torch.stack([request.state.tensors["update.affine"] for request in group])
        return Part(
            Source(), sizes, affine=hosted.layers.rows(folded(hosted, recipe.norm, own, _stacked(group, "norm")))
        )
    affine = None
    if recipe.update is not None:
        tensors = _stacked(group, "update")
        affine = hosted.layers.rows(recipe.update.serving(tensors["affine"], slot(tensors, "memory")))
    states = hosted.planned(recipe.norm).apart(_stacked(group, "norm"))
    return Part(recipe.norm, sizes, states, affine)


def _outcomes(hosted: HostedModel, part: Part) -> Iterator[tuple[Tensors, Seen | None, int]]:
    """For each stream of the part its new tensors, and where the moments of its batch are."""
    planned = hosted.planned(part.member)
    states = planned.together(part.layer_states)
    for stream in range(len(part.sizes)):
        # A row of a stack would keep the whole stack alive, with the states of other streams.
        tensors = {name: value[stream].clone() for name, value in states.items()}
        yield in_slot(tensors, "norm"), Seen(planned, part) if planned else None, stream
