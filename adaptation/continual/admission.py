"""Whether tensors from outside are a state of a learner: what is wrong with them, before anything trusts them."""

import numpy as np
from torch import Tensor

from ..member import Tensors
from ..tensor_slots import in_slot, slot
from .classes import Classes
from .growth import grow
from .learner import Learner
from .network import Slot
from .replay import Replay


def damage(learner: Learner, tensors: Tensors) -> str | None:
    """What makes the tensors no state of the learner's model and recipe; None where nothing does."""
    if missing := {"classes.names", "classes.first"} - tensors.keys():
        return f"{min(missing)} is missing"
    try:
        classes = Classes.unpacked(slot(tensors, "classes"))
    except ValueError as error:
        return str(error)
    if classes.first not in {0, learner.hosted.classes}:
        return f"{classes.first} classes are said to be the network's own, which has {learner.hosted.classes}"
    return (
        _shape_damage(tensors, _expected(learner, classes))
        or _value_damage(tensors)
        or _memory_damage(slot(tensors, "replay"), learner.recipe.replay, len(classes.names))
    )


def _expected(learner: Learner, classes: Classes) -> Tensors:
    """Tensors of the shapes that a state with these classes has, but for the memory and the names."""
    recipe, fresh = learner.recipe, learner.initial()
    parameters = {name: fresh[name] for name in learner.parameter_names}
    tasks = classes.count_tasks(recipe.classes_per_task)
    grown = grow(parameters, len(classes.names), tasks, np.random.default_rng(0))
    for name, value in grown.items():
        fresh |= in_slot(recipe.descent.initial(value), f"optimizer.{name}")
    return fresh | grown


def _shape_damage(tensors: Tensors, expected: Tensors) -> str | None:
    if tensors.keys() != expected.keys():
        return (
            f"{min(tensors.keys() ^ expected.keys())} is {'missing' if expected.keys() - tensors.keys() else 'unknown'}"
        )
    for name, want in expected.items():
        value = tensors[name]
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
        if value.dim() == 0 and value < 0:
            return f"{name} is negative"
    return None


def _memory_damage(memory: Tensors, replay: Replay, classes: int) -> str | None:
    lengths, outputs, places = memory["lengths"], memory["outputs"], int(memory["places"])
    size, width = len(memory["data"]), memory["logits"].shape[1]
    if len({len(memory[name]) for name in ("lengths", "labels", "outputs", "logits")}) > 1:
        return "the memory's tensors disagree on how many samples it has"
    wrong = {
        "lengths that do not cut up its bytes": bool((lengths < 0).any()) or int(lengths.sum()) != size,
        f"{len(lengths)} samples in {places} places": not len(lengths) <= places <= replay.capacity,
        f"{size} bytes, of at most {replay.max_bytes}": size > replay.max_bytes,
        f"labels that are none of the {classes} classes": _any_outside(memory["labels"], classes - 1),
        "logits of outputs that there are not": width > classes or _any_outside(outputs, width),
    }
    return next((f"the memory has {what}" for what, so in wrong.items() if so), None)


def _any_outside(values: Tensor, most: int) -> bool:
    return bool(((values < 0) | (values > most)).any())
