"""One lesson of a taught stream: uploaded samples and the state in, a new state out."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from PIL.Image import Image
from torch import Tensor

from . import replay
from .guard import Guard
from .hosting import HostedModel
from .learner import Learner, Passes, finished
from .member import Tensors
from .replay import Kept
from .samples import Sample, SampleError, decoded
from .state import StreamState, teacher_digest
from .taught_member import Images, Lesson, TaughtMember
from .tensor_slots import in_slot, slot

_FAR = 4  # times the guard's floor: a teacher whose answers are so diverse is far from it


@dataclass(frozen=True, slots=True)
class TeachingReport:
    """What a lesson did. Figures that are not finite are None."""

    used: int  # new samples
    replayed: int  # samples of the replay buffer that joined them
    replay_images: int  # in the buffer after the lesson
    replay_bytes: int
    student_loss: float | None
    teacher_loss: float | None
    teacher_entropy: float | None  # mean over the new samples, in nats
    discarded: bool  # whether all parameters and statistics stayed as they were
    reason: str | None  # why


@dataclass(frozen=True, slots=True, eq=False)
class Taught:
    """The outcome of a lesson. Nothing that was given has changed."""

    state: StreamState
    report: TeachingReport


def teach(
    student: HostedModel, teacher: HostedModel, state: StreamState, samples: Sequence[Sample], now: float
) -> Taught:
    """Teach a stream by new samples, and by some that it keeps: all of `teaching`."""
    return finished(teaching(student, teacher, state, samples, now))


def teaching(
    student: HostedModel, teacher: HostedModel, state: StreamState, samples: Sequence[Sample], now: float
) -> Passes[Taught]:
    """The same in passes over the networks, each over at most a batch, so that others need not wait for the whole.

    The same arguments give the same outcome: what is replayed is drawn by the number of the state's step.

    Args:
        student: the model of the stream.
        teacher: the model that the stream's recipe names.
        state: of a stream whose recipe has a teacher.
        samples: from 1 to the recipe's `batch`.
        now: unix time, seconds.

    Raises:
        SampleError: when a sample is no image; nothing is learnt then. The message names it.
        ValueError: when the state is of another recipe, student or teacher, or the samples are too many or none.
    """
    member = _member(student, teacher, state, len(samples))
    crops = [decoded(sample, student.preprocessing) for sample in samples]
    tensors = slot(state.tensors, "update")
    buffer = slot(tensors, "replay")
    oldest = now - member.replay_age_s
    kept = replay.bounded(replay.unpacked(buffer), member.replay_bytes, oldest)
    wanted = math.ceil(member.replay * len(samples) / member.batch)
    again = _decodable(replay.drawn(kept, wanted, seed=state.step), student)
    before = _learners(student, teacher, member, state)
    runs = [crops, *(again[start : start + member.batch] for start in range(0, len(again), member.batch))]
    images = _images(student, teacher, runs)
    lesson = yield from member.lesson(*before, images)
    reason = _complaint(lesson) or (yield from _collapse(before[0], lesson, images.student[0]))
    kept += [Kept(sample.image, min(sample.taken_at, now)) for sample in samples]
    kept = replay.bounded(kept, member.replay_bytes, oldest)
    learners = before if reason else (lesson.student, lesson.teacher)
    moved = state.tensors | _tensors(*learners) | in_slot(replay.packed(kept, buffer), "update.replay")
    report = TeachingReport(
        used=len(samples),
        replayed=len(again),
        replay_images=len(kept),
        replay_bytes=sum(len(each.image) for each in kept),
        student_loss=_finite(lesson.student_loss),
        teacher_loss=_finite(lesson.teacher_loss),
        teacher_entropy=_finite(lesson.teacher_entropy),
        discarded=reason is not None,
        reason=reason,
    )
    return Taught(replace(state, step=state.step + 1, tensors=moved), report)


def _member(student: HostedModel, teacher: HostedModel, state: StreamState, count: int) -> TaughtMember:
    member = state.recipe.update
    if not isinstance(member, TaughtMember):
        raise ValueError(f"recipe {state.recipe.canonical()} has no teacher; its streams learn from what they predict")
    if state.fingerprint != student.fingerprint:
        raise ValueError(
            f"the state belongs to model {state.model!r} ({state.fingerprint}),"
            f" not to {student.name!r} ({student.fingerprint})"
        )
    if not torch.equal(state.tensors["update.teacher.fingerprint"], teacher_digest(teacher)):
        raise ValueError(f"the state was taught by another model than {teacher.name!r} ({teacher.fingerprint})")
    if not 1 <= count <= member.batch:
        raise ValueError(f"a lesson takes 1 to {member.batch} samples, and there are {count}")
    return member


def _decodable(samples: list[Kept], student: HostedModel) -> list[Image]:
    """Kept samples as images. They were decoded when they were new; a buffer that was tampered with harms nobody."""
    found = []
    for sample in samples:
        try:
            found.append(decoded(Sample("of the replay buffer", sample.image, sample.taken_at), student.preprocessing))
        except SampleError:
            continue
    return found


def _images(student: HostedModel, teacher: HostedModel, runs: list[list[Image]]) -> Images:
    def of(hosted: HostedModel) -> list[Tensor]:
        of_crop = hosted.preprocessing.of_crop
        return [torch.stack([of_crop(crop) for crop in run]).to(hosted.device) for run in runs]

    return Images(of(student), of(teacher))


def _learners(
    student: HostedModel, teacher: HostedModel, member: TaughtMember, state: StreamState
) -> tuple[Learner, Learner]:
    mine, its = slot(state.tensors, "update"), slot(state.tensors, "update.teacher")
    norm = slot(state.tensors, "norm")
    return (
        Learner(student, state.recipe.norm, mine["affine"], mine["optimizer.velocity"], norm),
        Learner(teacher, member.teacher_norm, its["affine"], its["optimizer.velocity"], slot(its, "norm")),
    )


def _tensors(student: Learner, teacher: Learner) -> Tensors:
    """The inverse of `_learners`."""
    its = {"affine": teacher.affine, "optimizer.velocity": teacher.velocity, **in_slot(teacher.norm, "norm")}
    return {
        **in_slot(student.norm, "norm"),
        "update.affine": student.affine,
        "update.optimizer.velocity": student.velocity,
        **in_slot(its, "update.teacher"),
    }


def _complaint(lesson: Lesson) -> str | None:
    """Why a lesson must not count."""
    for name, loss in (("teacher", lesson.teacher_loss), ("student", lesson.student_loss)):
        if not math.isfinite(loss):
            return f"the {name}'s loss is not finite"
    for name, learner in (("teacher", lesson.teacher), ("student", lesson.student)):
        if not learner.finite:
            return f"the {name}'s parameters or statistics would not be finite"
    return None


def _collapse(before: Learner, lesson: Lesson, new: Tensor) -> Passes[str | None]:
    """Why a lesson must not count after which the student answers one class whatever it sees.

    The figure and its floor are those of the collapse guard, here of the new samples [n, 3, H, W] alone; the mean
    entropy of answers is never above that of the mean answer. Where the teacher is near the floor too, the samples are
    of one class; a student that had collapsed before needs its lessons.
    """
    floor = Guard().diversity_floor
    if diversity(lesson.targets) < _FAR * floor:
        return None
    (after,) = yield from lesson.student.answer([new])
    if diversity(after) >= floor:
        return None
    (was,) = yield from before.answer([new])
    if diversity(was) < floor:
        return None
    return (
        f"the student's answers would collapse: the entropy of their mean is {diversity(after):.3f} ln(classes),"
        f" and {diversity(lesson.targets):.3f} of the teacher's"
    )


def diversity(logits: Tensor) -> float:
    """Entropy of the mean answer to images whose logits are [n, classes], in parts of ln(classes)."""
    mean_answer = logits.softmax(1).mean(0)
    return float(torch.special.entr(mean_answer).sum()) / math.log(max(len(mean_answer), 2))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
