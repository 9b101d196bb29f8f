"""One lesson of a stream that learns from labels: labelled samples and the state in, a new state out."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from .codec import StateError
from .continual.learner import LearningReport
from .continual.pixels import DamagedImageError, Examples
from .hosting import HostedModel
from .learnt_model import learner_of
from .member import Tensors
from .state import StreamState, initial_slots
from .tensor_slots import in_slot, slot


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What a lesson leaves. Nothing that was given has changed."""

    state: StreamState
    report: LearningReport


def learn(hosted: HostedModel, state: StreamState, examples: Examples, labels: Sequence[str]) -> Outcome:
    """One step of learning. One whose result is not finite is discarded: the state stays, and the report says why.

    Args:
        hosted: the model.
        state: of a stream that learns from labels.
        examples: images at the network's input size, uint8 [B, H, W, 3]; or what the head reads of them, float32
            [B, D], where the recipe learns from features.
        labels: name of each one's class; a new name makes a new class. At most `batch` of the recipe.

    Raises:
        StateError: when an image in the memory of a state from elsewhere is damaged.
        ValueError: when the state is of another model or learns nothing from labels, or examples and labels do not fit
            each other, the network or the recipe.
    """
    if state.learnt is None:
        raise ValueError(f"recipe {state.recipe.canonical()} learns nothing from labels; give it the slot `learn`")
    if hosted.fingerprint != state.learnt.fingerprint:
        raise ValueError(
            f"the state belongs to model {state.model!r} ({state.learnt.fingerprint}),"
            f" not to {hosted.name!r} ({hosted.fingerprint})"
        )
    if len(labels) > (most := state.learnt.learning.batch):
        raise ValueError(f"a lesson takes at most {most} samples, and there are {len(labels)}; cut them into lessons")
    try:
        lesson = learner_of(hosted, state.learnt.learning).learn(state.learnt.tensors, examples, labels)
    except DamagedImageError as error:
        raise StateError(str(error)) from None
    if lesson.report.discarded is not None:
        return Outcome(state, lesson.report)
    learnt = replace(state.learnt, tensors=lesson.tensors)
    tensors = state.tensors
    if len(learnt.names) != len(state.learnt.names):
        tensors = _fitting(tensors, initial_slots(hosted, state.recipe, learnt))
    return Outcome(replace(state, tensors=tensors, learnt=learnt), lesson.report)


def _fitting(tensors: Tensors, fresh: Tensors) -> Tensors:
    """The slots' tensors, but a new stream's in the place of those that no longer fit the classes.

    An update member's stand each for itself, so that its parameters stay where they are; an output member's are about
    the same samples, and begin anew together.
    """
    fits = {name for name, value in fresh.items() if name in tensors and tensors[name].shape == value.shape}
    output = set(in_slot(slot(fresh, "output"), "output"))
    kept = fits if output <= fits else fits - output
    return {name: tensors[name] if name in kept else value for name, value in fresh.items()}
