"""One adaptation step: states and images in, predictions and new states out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from .hosting import Forwarded, HostedModel
from .member import Tensors
from .norm.source import Source
from .part import Part, Seen
from .recipe import Recipe
from .standing import folded
from .state import StreamState, model_of
from .taught_member import TaughtMember
from .tensor_slots import in_slot, slot
from .turn import Turn
from .update_member import UpdateMember
from .updating import Report, update


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """Images of one stream, with the state that the stream is in."""

    state: StreamState  # on the model's device
    images: Tensor  # [B, C, H, W], preprocessed, on any device
    adapt: bool = True  # False predicts with the state, and leaves it as it is


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """The answer to a request. Nothing that was given has changed."""

    state: StreamState
    logits: Tensor  # [B, classes of the stream]; their softmax is the prediction
    features: Tensor | None = None  # what the head read, [B, D]; None where the network ends in no linear layer
    seen: Seen | None = None  # the moments of the batch, with `stream`; None when the recipe looks at no batch
    stream: int = 0
    report: Report | None = None  # what the update slot did; None where it is off


def step(hosted: HostedModel, requests: Sequence[Request]) -> list[Result]:
    """Serve many streams, each by its own recipe and state.

    The results are those of serving the streams one after another. A stream appears at most once: its second request
    needs the state that its first one leaves. Streams that move no parameters share one forward pass whatever their
    recipes, and whatever they have learnt from labels, unless that is a network of their own; streams that do share
    forward and backward passes with those of the same recipe that have learnt nothing.

    Raises:
        NoClassYet: when a stream that began without classes has learnt none.
        ValueError: when a state belongs to another model, images have another shape than the model's input, or a
            stream that has a teacher is to adapt: it predicts only, by its standing statistics.
    """
    for request in requests:
        _check(hosted, request)
    groups = _alike(hosted, requests)
    updating = [group for group in groups if group.updates]
    forward_only = [group for group in groups if not group.updates]
    together = [group for group in forward_only if not group.model.own_network]
    answers: dict[int, Result] = {}
    with torch.inference_mode():
        if together:
            answers |= _forward(hosted, requests, together)
        for group in forward_only:
            if group.model.own_network:
                answers |= _forward(group.model, requests, [group])
    for group in updating:
        answers |= _update(requests, group)
    return [answers[index] for index in range(len(requests))]


class _Group(NamedTuple):
    """Requests whose streams have one recipe and one model."""

    model: HostedModel  # as the streams have it
    recipe: Recipe
    adapt: bool
    places: tuple[int, ...]  # of the requests

    @property
    def updates(self) -> bool:
        """Whether parameters move."""
        return self.adapt and self.recipe.update is not None


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


def _alike(hosted: HostedModel, requests: Sequence[Request]) -> list[_Group]:
    """The requests by model, recipe and whether they adapt."""
    places: dict[tuple[HostedModel, Recipe, bool], list[int]] = {}
    for place, request in enumerate(requests):
        key = model_of(hosted, request.state), request.state.recipe, request.adapt
        places.setdefault(key, []).append(place)
    return [_Group(*key, tuple(mine)) for key, mine in places.items()]


def _forward(network: HostedModel, requests: Sequence[Request], groups: Sequence[_Group]) -> dict[int, Result]:
    """Answers of streams whose parameters stay, in one pass of a network that is all of theirs."""
    order = [(place, group.model) for group in groups for place in group.places]
    parts = [_part(group.model, [requests[place] for place in group.places]) for group in groups]
    images = torch.cat([requests[place].images for place, _ in order]).to(network.device)
    passed = network.run(images, parts)
    outcomes = (outcome for group, part in zip(groups, parts, strict=True) for outcome in _outcomes(group.model, part))
    rows = _rows([len(requests[place].images) for place, _ in order], passed)
    results = {}
    for (place, model), row, (norm, seen, stream) in zip(order, rows, outcomes, strict=True):
        answer = model.answered(row)
        draft = Result(requests[place].state, answer.logits, answer.features, seen, stream)
        results[place] = _result(model, requests[place], norm, draft)
    return results


def _update(requests: Sequence[Request], group: _Group) -> dict[int, Result]:
    """Answers of streams of one recipe whose parameters move."""
    model, recipe = group.model, group.recipe
    chosen = [requests[place] for place in group.places]
    assert isinstance(recipe.update, UpdateMember)
    sizes = tuple(len(request.images) for request in chosen)
    images = torch.cat([each.images for each in chosen]).to(model.device)
    turn = Turn(model, recipe.norm, _stacked(chosen, "norm"), sizes, images)
    answer, norm, tensors, reports = update(recipe.update, turn, _stacked(chosen, "update"))
    with torch.no_grad():
        features = None if answer.features is None else answer.features.detach()
        rows = _rows(sizes, Forwarded(answer.logits.detach(), features))
        results = {}
        for stream, (place, row) in enumerate(zip(group.places, rows, strict=True)):
            mine = {name: value[stream].clone() for name, value in norm.items()}
            moved = in_slot({name: value[stream].clone() for name, value in tensors.items()}, "update")
            draft = Result(requests[place].state, *row, answer.seen, stream, reports[stream])
            results[place] = _result(model, requests[place], in_slot(mine, "norm") | moved, draft)
    return results


def _result(model: HostedModel, request: Request, tensors: Tensors, draft: Result) -> Result:
    """The draft, adjusted by the output member, with the stream's new state."""
    state, logits = request.state, draft.logits
    if state.recipe.output is not None:
        logits, memory = state.recipe.output.adjust(model, logits, draft.features, slot(state.tensors, "output"))
        tensors = tensors | in_slot(memory, "output")
    if request.adapt:
        state = replace(state, step=state.step + 1, tensors=tensors)
    return replace(draft, state=state, logits=logits)


def _rows(sizes: Sequence[int], passed: Forwarded) -> list[Forwarded]:
    """Each stream's of a pass."""
    logits, features = passed
    theirs = [None] * len(sizes) if features is None else features.split(list(sizes))
    return list(map(Forwarded, logits.split(list(sizes)), theirs))


def _stacked(group: Sequence[Request], name: str) -> Tensors:
    states = [slot(request.state.tensors, name) for request in group]
    return {key: torch.stack([state[key] for state in states]) for key in states[0]}


def _part(model: HostedModel, group: Sequence[Request]) -> Part:
    recipe, sizes = group[0].state.recipe, tuple(len(request.images) for request in group)
    if isinstance(recipe.update, TaughtMember):
        own = torch.stack([request.state.tensors["update.affine"] for request in group])
        return model.part(Source(), sizes, {}, folded(model, recipe.norm, own, _stacked(group, "norm")))
    affine = None
    if recipe.update is not None:
        tensors = _stacked(group, "update")
        affine = recipe.update.serving(tensors["affine"], slot(tensors, "memory"))
    return model.part(recipe.norm, sizes, _stacked(group, "norm"), affine)


def _outcomes(model: HostedModel, part: Part) -> Iterator[tuple[Tensors, Seen | None, int]]:
    """For each stream of the part its new tensors, and where the moments of its batch are."""
    planned = model.planned(part.member)
    states = planned.together(part.layer_states)
    for stream in range(len(part.sizes)):
        # A row of a stack would keep the whole stack alive, with the states of other streams.
        tensors = {name: value[stream].clone() for name, value in states.items()}
        yield in_slot(tensors, "norm"), Seen(planned, part) if planned else None, stream
