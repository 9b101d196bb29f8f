"""Whether tensors from outside are a state of a learner: what is wrong with them, before anything trusts them."""

import numpy as np
import torch
from torch import Tensor

from ..member import Tensors
from ..tensor_slots import in_slot, slot
from .classes import Classes
from .growth import HEAD_BIAS, HEAD_WEIGHT, lengthened
from .learner import Learner
from .network import TASK_WEIGHT, Slot
from .replay import Replay

_MOST = 2**52
"""Of a counter: what comes after it still fits its tensor, JSON and the numbers that it is reckoned with."""


def damage(learner: Learner, tensors: Tensors) -> str | None:
    """What makes the tensors no state of the learner's model and recipe; None where nothing does."""
    named = in_slot(Classes((), 0).packed(), "classes")
    if wrong := _shape_damage({name: tensors[name] for name in named.keys() & tensors.keys()}, named):
        return wrong
    try:
        classes = Classes.unpacked(slot(tensors, "classes"))
    except ValueError as error:
        return str(error)
    if classes.first not in {0, learner.hosted.classes}:
        return f"{classes.first} classes are said to be the network's own, which has {learner.hosted.classes}"
    if (new := len(classes.names) - classes.first) > (most := learner.recipe.max_new_classes):
        return f"{new} classes are new, of at most {most}"
    memory = slot(tensors, "replay")
    return (
        _shape_damage(tensors, _expected(learner, classes))
        or _value_damage(tensors)
        or _memory_damage(memory, learner.recipe.replay, len(classes.names))
        or _logits_damage(memory, learner.recipe.method.keeps_logits, len(classes.names))
        or _sample_damage(memory, learner.recipe.replay, learner.network.width)
    )


def _expected(learner: Learner, classes: Classes) -> Tensors:
    """Tensors of the shapes that a state with these classes has, but for the memory and the names.

    They are of shapes alone: a short text may name so many classes that their outputs would fill the machine.
    """
    recipe = learner.recipe
    expected = {name: value.to("meta") for name, value in learner.initial().items()}
    tasks = classes.count_tasks(recipe.classes_per_task)
    rows = {name: tasks for name in learner.parameter_names if name.endswith(f".{TASK_WEIGHT}")}
    for name, count in (rows | {HEAD_WEIGHT: len(classes.names), HEAD_BIAS: len(classes.names)}).items():
        expected[name] = lengthened(expected[name], count)
        expected |= in_slot(recipe.descent.initial(expected[name]), f"optimizer.{name}")
    return expected


def _shape_damage(tensors: Tensors, expected: Tensors) -> str | None:
    if missing := expected.keys() - tensors.keys():
        return f"{min(missing)} is missing"
    if unknown := tensors.keys() - expected.keys():
        return f"{min(unknown):.80} is unknown"
    for name, want in expected.items():
        value = tensors[name]
        if name == "batches" and value.dtype == torch.int64:
            value = value.double()  # A state from before batches counted in parts has whole ones.
        free = name.startswith("replay.") or name == "classes.names"  # of a length of their own
        if value.dtype != want.dtype or value.dim() != want.dim() or not (free or value.shape == want.shape):
            return f"{name} is {value.dtype} {tuple(value.shape)}, expected {want.dtype} {tuple(want.shape)}"
    return None


def _value_damage(tensors: Tensors) -> str | None:
    for name, value in tensors.items():
        if not value.isfinite().all():
            return f"{name} holds values that are not finite"
        if name.endswith(f".{Slot.VAR}") and (value < 0).any():
            return f"{name} holds a negative variance"
        counts = name == "batches" or (value.dim() == 0 and not value.is_floating_point())
        if counts and not 0 <= value <= _MOST:
            return f"{name} is {value.item()}, which counts nothing"
    return None


def _memory_damage(memory: Tensors, replay: Replay, classes: int) -> str | None:
    lengths, places, size = memory["lengths"], int(memory["places"]), len(memory["data"])
    if len({len(memory[name]) for name in ("lengths", "labels", "outputs", "logits")}) > 1:
        return "the memory's tensors disagree on how many samples it has"
    wrong = {
        # Each by itself too: a sum of large ones comes round to any number.
        "lengths that do not cut up its bytes": _any_outside(lengths, size) or int(lengths.sum()) != size,
        f"{len(lengths)} samples in {places} places": not len(lengths) <= places <= replay.capacity,
        # Without the logits, which states from before they counted have on top; the next sample kept makes room.
        f"{size} bytes, of at most {replay.max_bytes}": size > replay.max_bytes,
        f"labels that are none of the {classes} classes": _any_outside(memory["labels"], classes - 1),
    }
    return next((f"the memory has {what}" for what, so in wrong.items() if so), None)


def _logits_damage(memory: Tensors, kept: bool, classes: int) -> str | None:
    outputs, width = memory["outputs"], memory["logits"].shape[1]
    if width > classes or _any_outside(outputs, width):
        return "the memory has logits of outputs that there are not"
    if kept and (outputs == 0).any():
        return "the memory has samples without logits, which the method needs of each"
    if width and not kept:
        return "the memory has logits, and the method keeps none"
    return None


def _sample_damage(memory: Tensors, replay: Replay, width: int) -> str | None:
    """Of images no more is known than their bytes: to unpack them all would take long."""
    if replay.keep == "nothing" and len(memory["lengths"]):
        return "the memory has samples, and the recipe keeps none"
    if replay.keep == "features":
        if (memory["lengths"] != width * np.dtype(np.float32).itemsize).any():
            return f"the memory has samples that are not {width} features"
        if not np.isfinite(np.frombuffer(memory["data"].cpu().numpy(), np.float32)).all():
            return "the memory has features that are not finite"
    return None


def _any_outside(values: Tensor, most: int) -> bool:
    return bool(((values < 0) | (values > most)).any())
