"""A stream's state: data, without behaviour."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from . import replay
from .hosting import HostedModel
from .learnt import Learnt
from .learnt_model import learner_of, learnt_model
from .member import Tensors
from .models import class_names
from .optimizers import initial_memory
from .recipe import Recipe
from .requirements import require, require_teacher
from .taught_member import TaughtMember
from .tensor_slots import in_slot
from .update_member import UpdateMember


@dataclass(frozen=True, slots=True, eq=False)
class StreamState:
    """Everything a stream remembers. Methods are functions of it, and replace it rather than change it.

    The tensors of a recipe's slots are under `norm.`, `update.` and `output.`. Per-channel tensors hold all layers side
    by side on their last axis, in the order of the model's layers.
    """

    model: str  # name, for people
    fingerprint: str  # of the model's weights and preprocessing
    recipe: Recipe
    step: int = 0  # adaptation steps since the source
    tensors: Tensors = field(default_factory=dict)
    learnt: Learnt | None = None  # from labels; None where the recipe learns from none

    @property
    def bytes(self) -> int:
        """Size of the tensors."""
        learnt = 0 if self.learnt is None else self.learnt.bytes
        return learnt + sum(value.nbytes for value in self.tensors.values())

    def to(self, device: torch.device) -> "StreamState":
        """The same on a device, such as the model's."""
        tensors = {name: value.to(device) for name, value in self.tensors.items()}
        return replace(self, tensors=tensors, learnt=None if self.learnt is None else self.learnt.to(device))


def initial_state(hosted: HostedModel, recipe: Recipe, teacher: HostedModel | None = None) -> StreamState:
    """The state of a stream that has seen nothing.

    Args:
        hosted: the model.
        recipe: of the stream.
        teacher: the model that `recipe.teacher` names; None where it names none.

    Raises:
        HostingError: when the model cannot follow the recipe or the teacher cannot teach it, with the reason and the
            remedy.
    """
    require(hosted, recipe)
    learnt = None
    if recipe.learn is not None:
        names = class_names(hosted) if recipe.learn.head == "trained" else ()
        learnt = Learnt(hosted.fingerprint, recipe.learn, learner_of(hosted, recipe.learn).initial(names))
    tensors = initial_slots(hosted, recipe, learnt, teacher)
    return StreamState(hosted.name, hosted.fingerprint, recipe, tensors=tensors, learnt=learnt)


def initial_slots(
    hosted: HostedModel, recipe: Recipe, learnt: Learnt | None = None, teacher: HostedModel | None = None
) -> Tensors:
    """The tensors of the recipe's slots, of a stream that has adapted to nothing; arguments as for `initial_state`.

    Without a class there is nothing that parameters or predictions could adapt by, and their slots stay empty.
    """
    classes = learnt is None or bool(learnt.names)
    model = learnt_model(hosted, learnt) if learnt is not None and classes else hosted
    with torch.no_grad():
        tensors: Tensors = {}
        if recipe.norm.adapts:
            tensors |= in_slot(recipe.norm.initial(model.planned(recipe.norm).source), "norm")
        if isinstance(recipe.update, TaughtMember):
            teacher = require_teacher(hosted, recipe.update, teacher)
            tensors |= in_slot(_initial_lessons(hosted, teacher, recipe.update), "update")
        elif recipe.update is not None and classes:
            tensors |= in_slot(initial_update(model, recipe.update), "update")
        if recipe.output is not None and classes:
            tensors |= in_slot(recipe.output.initial(model), "output")
    return tensors


def model_of(hosted: HostedModel, state: StreamState) -> HostedModel:
    """The model as the stream has it: with what it has learnt, if it learns.

    Raises:
        NoClassYet: when the stream began without classes and has learnt none.
    """
    return hosted if state.learnt is None else learnt_model(hosted, state.learnt)


def names_of(hosted: HostedModel, state: StreamState) -> tuple[str, ...]:
    """Of the classes that the stream tells apart, in the order of its outputs."""
    return class_names(hosted) if state.learnt is None else state.learnt.names


def initial_update(hosted: HostedModel, member: UpdateMember) -> Tensors:
    """The update slot's tensors of a new stream: parameters, optimiser, guard and the member's own memory."""
    affine = hosted.layers.affine
    return {
        "affine": affine.clone(),
        "steps": torch.zeros((), dtype=torch.int64, device=affine.device),
        **in_slot(member.optimizer_memory(affine), "optimizer"),
        **in_slot(member.guard.initial(affine, hosted.classes), "guard"),
        **in_slot(member.initial(hosted), "memory"),
    }


def _initial_lessons(hosted: HostedModel, teacher: HostedModel, member: TaughtMember) -> Tensors:
    """The update slot's tensors of a new taught stream: both models' parameters and optimisers, and what is kept."""
    mine, its = hosted.layers.affine, teacher.layers.affine
    norm = member.teacher_norm
    statistics = norm.initial(teacher.planned(norm).source) if norm.adapts else {}
    return {
        "affine": mine.clone(),
        **in_slot(initial_memory("sgd", mine), "optimizer"),
        "teacher.affine": its.clone(),
        **in_slot(initial_memory("sgd", its), "teacher.optimizer"),
        **in_slot(statistics, "teacher.norm"),
        "teacher.fingerprint": teacher_digest(teacher),
        **in_slot(replay.initial(member.replay_bytes, mine.device), "replay"),
    }


def teacher_digest(teacher: HostedModel) -> Tensor:
    """The teacher's fingerprint as a tensor, uint8 [32]: so a state knows whose pupil it is."""
    return torch.tensor(list(bytes.fromhex(teacher.fingerprint.removeprefix("sha256:"))), dtype=torch.uint8)
