"""A stream's state as bytes: safetensors, never pickle.

The header's metadata holds what the tensors belong to and a digest of everything, so that bytes which were cut short,
changed or made for something else are refused with the reason.
"""

import hashlib
import json
from dataclasses import replace
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from . import replay
from .continual.admission import damage
from .continual.learning import Learning
from .hosting import HostedModel
from .learnt import Learnt
from .learnt_model import learner_of
from .member import Tensors
from .recipe import Recipe
from .requirements import require
from .state import StreamState, initial_slots
from .tensor_slots import in_slot, slot

FORMAT = "normstream.state/1"
LEARNT_FORMAT = "normstream.learnt/1"
MAX_STEP = 2**52  # What comes after it still fits JSON's and Lua's numbers.
_ENTRY = "normstream"  # of the safetensors metadata


class StateError(ValueError):
    """Bytes that are no state; `ForeignStateError` is the one that is a state, but of something else."""


class ForeignStateError(StateError):
    """A state of another model or another recipe."""


def encode(state: StreamState) -> bytes:
    """The whole state as safetensors bytes; equal states give equal bytes.

    What was learnt from labels is large and changes seldom. To keep the two apart, encode the state with `learnt` None
    here and the other with `encode_learnt`.
    """
    header = {
        "format": FORMAT,
        "model": state.model,
        "fingerprint": state.fingerprint,
        "recipe": state.recipe.canonical(),
        "step": state.step,
    }
    learnt = {} if state.learnt is None else in_slot(state.learnt.tensors, "learn")
    return _written(header, state.tensors | learnt)


def decode(data: bytes) -> StreamState:
    """A state from bytes, on the CPU; without `learnt` where it was encoded apart.

    Raises:
        StateError: when the bytes are not a whole, unchanged state of this format.
    """
    header, tensors = _read(data, FORMAT)
    state = _state(header, tensors)
    if state.recipe.learn is None or not (learnt := slot(tensors, "learn")):
        return state
    rest = {name: value for name, value in tensors.items() if not name.startswith("learn.")}
    return replace(state, tensors=rest, learnt=Learnt(state.fingerprint, state.recipe.learn, learnt))


def encode_learnt(state: StreamState) -> bytes:
    """What the state's stream has learnt, alone.

    Raises:
        ValueError: when the stream learns nothing from labels.
    """
    if state.learnt is None:
        raise ValueError(f"a stream of recipe {state.recipe.canonical()} learns nothing from labels")
    learnt = state.learnt
    header = {
        "format": LEARNT_FORMAT,
        "fingerprint": learnt.fingerprint,
        "learning": learnt.learning.model_dump_json(),
    }
    return _written(header, learnt.tensors)


def decode_learnt(data: bytes) -> Learnt:
    """The inverse, on the CPU.

    Raises:
        StateError: when the bytes are not whole, unchanged and of this format.
    """
    header, tensors = _read(data, LEARNT_FORMAT)
    try:
        learning = Learning.model_validate_json(str(header.get("learning")))
    except ValueError as error:
        raise StateError(f"how it was learnt is none of our ways: {error}") from None
    return Learnt(str(header.get("fingerprint")), learning, tensors)


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
    require(hosted, state.recipe)
    learnt = _admitted_learnt(state, hosted)
    expected = initial_slots(hosted, state.recipe, learnt, teacher)
    if teacher is not None:
        _check_teacher(state.tensors, expected, teacher)
    _check_tensors(state.tensors, expected)
    if state.recipe.teacher and (wrong := replay.damage(slot(state.tensors, "update.replay"))):
        raise StateError(f"the replay buffer is damaged: {wrong}")
    tensors = {name: value.to(hosted.device) for name, value in state.tensors.items()}
    return StreamState(hosted.name, state.fingerprint, state.recipe, state.step, tensors, learnt)


def _admitted_learnt(state: StreamState, hosted: HostedModel) -> Learnt | None:
    """What was learnt from labels, on the model's device."""
    learnt, learning = state.learnt, state.recipe.learn
    if learning is None:
        if learnt is not None:
            raise StateError(
                f"it holds what was learnt from labels, and its recipe {state.recipe.canonical()} does not"
            )
        return None
    if learnt is None:
        raise StateError("what was learnt from labels is missing")
    if (learnt.fingerprint, learnt.learning) != (state.fingerprint, learning):
        raise ForeignStateError(
            f"what was learnt is of model {learnt.fingerprint} and {learnt.learning.model_dump_json()}, and this is"
            f" {state.fingerprint} and {learning.model_dump_json()}"
        )
    if wrong := damage(learner_of(hosted, learning), learnt.tensors):
        raise StateError(f"what was learnt is damaged: {wrong}")
    return learnt.to(hosted.device)


def _written(header: dict[str, Any], tensors: Tensors) -> bytes:
    tensors = {name: value.cpu().contiguous() for name, value in tensors.items()}
    # One entry: safetensors writes several in no fixed order.
    return save(tensors, {_ENTRY: json.dumps(header | {"digest": _digest(header, tensors)})})


def _read(data: bytes, expected: str) -> tuple[dict[str, Any], Tensors]:
    """Header and tensors of bytes in the format that is expected."""
    try:
        tensors = load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise StateError(f"not a safetensors file, or cut short: {error}") from None
    header = _header(data)
    if header.get("format") != expected:
        raise StateError(f"format is {header.get('format')!r}, expected {expected!r}")
    if header.pop("digest", None) != _digest(header, tensors):
        raise StateError("the digest does not match: the bytes were changed after they were written")
    return header, tensors


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
