"""A stream's state as bytes: safetensors, never pickle.

The header's metadata holds what the tensors belong to and a digest of everything, so that bytes which were cut short,
changed or made for something else are refused with the reason.
"""

import hashlib
import json
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from . import replay
from .hosting import HostedModel
from .member import Tensors
from .recipe import Recipe
from .state import StreamState, initial_state, slot

FORMAT = "normstream.state/1"
MAX_STEP = 2**52  # What comes after it still fits JSON's and Lua's numbers.
_ENTRY = "normstream"  # of the safetensors metadata


class StateError(ValueError):
    """Bytes that are no state; `ForeignStateError` is the one that is a state, but of something else."""


class ForeignStateError(StateError):
    """A state of another model or another recipe."""


def encode(state: StreamState) -> bytes:
    """The state as safetensors bytes; equal states give equal bytes."""
    header = {
        "format": FORMAT,
        "model": state.model,
        "fingerprint": state.fingerprint,
        "recipe": state.recipe.canonical(),
        "step": state.step,
    }
    tensors = {name: value.cpu().contiguous() for name, value in state.tensors.items()}
    # One entry: safetensors writes several in no fixed order.
    return save(tensors, {_ENTRY: json.dumps(header | {"digest": _digest(header, tensors)})})


def decode(data: bytes) -> StreamState:
    """A state from bytes, on the CPU.

    Raises:
        StateError: when the bytes are not a whole, unchanged state of this format.
    """
    try:
        tensors = load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise StateError(f"not a safetensors file, or cut short: {error}") from None
    header = _header(data)
    if header.get("format") != FORMAT:
        raise StateError(f"format is {header.get('format')!r}, expected {FORMAT!r}")
    if header.pop("digest", None) != _digest(header, tensors):
        raise StateError("the digest does not match: the bytes were changed after they were written")
    return _state(header, tensors)


def admit(
    state: StreamState, hosted: HostedModel, recipe: Recipe | None = None, teacher: HostedModel | None = None
) -> StreamState:
    """Let a decoded state in, on the model's device, when it fits the model, and the stream's recipe if given.

    A state whose recipe has a teacher must fit `teacher` too.

    Raises:
        ForeignStateError: when it belongs to another model, recipe or teacher; both are named.
        StateError: when its tensors are not those that its recipe makes, or hold impossible values.
        HostingError: when its recipe needs a teacher, and the one given cannot be it.
    """
    if state.fingerprint != hosted.fingerprint:
        raise ForeignStateError(
            f"the state is of model {state.model!r} ({state.fingerprint}),"
            f" and this is {hosted.name!r} ({hosted.fingerprint})"
        )
    if recipe is not None and state.recipe != recipe:
        raise ForeignStateError(f"the state is of recipe {state.recipe.canonical()}, and this is {recipe.canonical()}")
    expected = initial_state(hosted, state.recipe, teacher).tensors
    if teacher is not None:
        _check_teacher(state.tensors, expected, teacher)
    _check_tensors(state.tensors, expected)
    if state.recipe.teacher and (wrong := replay.damage(slot(state.tensors, "update.replay"))):
        raise StateError(f"the replay buffer is damaged: {wrong}")
    tensors = {name: value.to(hosted.device) for name, value in state.tensors.items()}
    return StreamState(hosted.name, state.fingerprint, state.recipe, state.step, tensors)


def _header(data: bytes) -> dict[str, Any]:
    # `load` has checked that these bytes are JSON, and safetensors allows only strings in its metadata.
    length = int.from_bytes(data[:8], "little")
    text = (json.loads(data[8 : 8 + length]).get("__metadata__") or {}).get(_ENTRY, "{}")
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        header = None
    return header if isinstance(header, dict) else {}


def _state(header: dict[str, Any], tensors: Tensors) -> StreamState:
    step = header.get("step")
    if type(step) is not int or not 0 <= step < MAX_STEP:
        raise StateError(f"step is {step!r:.50}, expected a whole number below 2^52")
    try:
        recipe = Recipe.parse(header.get("recipe"))
    except ValueError as error:
        raise StateError(f"its recipe is none of ours: {error}") from None
    return StreamState(str(header.get("model")), str(header.get("fingerprint")), recipe, step, tensors)


def _digest(header: dict[str, Any], tensors: Tensors) -> str:
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name}:{value.dtype}:{tuple(value.shape)}".encode())
        digest.update(value.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _check_teacher(tensors: Tensors, expected: Tensors, teacher: HostedModel) -> None:
    name = "update.teacher.fingerprint"
    if name in tensors and name in expected and not torch.equal(tensors[name].cpu(), expected[name]):
        seen = f"sha256:{tensors[name].flatten().to(torch.uint8).numpy().tobytes().hex():.80}"
        raise ForeignStateError(
            f"the state was taught by a model of fingerprint {seen},"
            f" and this is {teacher.name!r} ({teacher.fingerprint})"
        )


def _check_tensors(tensors: Tensors, expected: Tensors) -> None:
    if tensors.keys() != expected.keys():
        raise StateError(f"the tensors are {sorted(tensors)}, expected {sorted(expected)}")
    for name, value in tensors.items():
        want = expected[name]
        if value.shape != want.shape or value.dtype != want.dtype:
            raise StateError(f"{name} is {value.dtype} {tuple(value.shape)}, expected {want.dtype} {tuple(want.shape)}")
        if not value.isfinite().all():
            raise StateError(f"{name} holds values that are not finite")
        if name.endswith(".var") and (value < 0).any():
            raise StateError(f"{name} holds a negative variance, {value.min().item():g}")
