"""A turn of streams whose affine parameters move: answer, gradient, guard, step."""

from typing import NamedTuple

import torch
from torch import Tensor

from .guard import Alarm, finite
from .member import Tensors
from .state import initial_update
from .tensor_slots import in_slot, slot
from .turn import Pass, Turn
from .update_member import Gradients, UpdateMember


class Report(NamedTuple):
    """What the update slot did at one stream's step."""

    moved: bool  # whether parameters moved; a stream that keeps no image of its batch stays where it is
    alarm: Alarm  # why the step was discarded
    alarms: int  # so far
    restored: bool  # whether the stream began anew: at its last good parameters, or by its method's rule at the source


class Updated(NamedTuple):
    """A turn's outcome; rows are streams."""

    answer: Pass
    norm: Tensors
    tensors: Tensors
    reports: list[Report]


def update(member: UpdateMember, turn: Turn, tensors: Tensors) -> Updated:
    """Answer, and move each stream's parameters.

    Args:
        member: of the update slot.
        turn: the streams.
        tensors: of the update slot, stacked, each [S, ...].
    """
    memory = slot(tensors, "memory")
    with torch.enable_grad():
        gradients = member.gradients(turn, tensors["affine"], memory)
    with torch.no_grad():
        moved, restart = _moved(member, turn, tensors, gradients)
        answer = gradients.answer
        probs = turn.split(answer.logits.detach().softmax(1))
        rows = [
            _guarded(member, turn, stream, probs[stream], tensors, moved, gradients, restart=bool(restart[stream]))
            for stream in range(len(probs))
        ]
        kept, reports = [row for row, _ in rows], [report for _, report in rows]
        stacked = {name: torch.stack([row[name] for row in kept]) for name in tensors}
        return Updated(answer, _norm(turn, answer, reports), stacked, reports)


def _moved(member: UpdateMember, turn: Turn, tensors: Tensors, gradients: Gradients) -> tuple[Tensors, Tensor]:
    """All streams after the optimiser's step, for those that take one; and which of them are to begin anew, [S]."""
    before = tensors["affine"], slot(tensors, "optimizer")
    affine, optimizer = member.descend(turn, before[0], gradients.gradient, before[1])
    affine = _where(gradients.active, affine, before[0])
    optimizer = {name: _where(gradients.active, value, before[1][name]) for name, value in optimizer.items()}
    memory = {name: value.detach() for name, value in gradients.memory.items()}
    affine, memory, restart = member.after(turn, affine, gradients.active, memory)
    steps = tensors["steps"] + 1
    if member.reset_every:
        restart = restart | (steps % member.reset_every == 0)
    after = {"affine": affine, "steps": steps, **in_slot(optimizer, "optimizer"), **in_slot(memory, "memory")}
    return after, restart


def _guarded(
    member: UpdateMember,
    turn: Turn,
    stream: int,
    probs: Tensor,
    tensors: Tensors,
    moved: Tensors,
    gradients: Gradients,
    *,
    restart: bool,
) -> tuple[Tensors, Report]:
    """One stream: its step, or what it was before when the guard objects."""
    after = {name: value[stream] for name, value in moved.items()}
    before = {name: value[stream] for name, value in tensors.items()} | {"steps": after["steps"]}
    norm = [value[stream] for value in gradients.answer.norm.values()]
    guard = member.guard
    alarm, watched = guard.watch(probs, slot(before, "guard"))
    if not all(finite(value) for value in (*after.values(), *norm)):
        alarm, watched = Alarm.NON_FINITE, slot(before, "guard")
    if restart and alarm is not Alarm.NON_FINITE:
        # The method's own rule; an alarm does not keep it from what would end the alarm.
        figures = watched if alarm is Alarm.NONE else guard.alarmed(watched)
        source = {"good": turn.hosted.layers.affine, "alarms": figures["alarms"]}
        return _back(member, turn, after["steps"], source), Report(True, alarm, int(figures["alarms"]), restored=True)
    if alarm is Alarm.NONE:
        serving = member.serving(after["affine"], slot(after, "memory"))
        figures = guard.calm(watched, len(probs), serving)
        report = Report(bool(gradients.active[stream]), alarm, int(figures["alarms"]), restored=False)
        return after | in_slot(figures, "guard"), report
    figures = guard.alarmed(watched)
    report = Report(moved=False, alarm=alarm, alarms=int(figures["alarms"]), restored=False)
    if figures["in_a_row"] < guard.patience:
        return before | in_slot(figures, "guard"), report
    if alarm is not Alarm.NON_FINITE and _source_agrees(turn, stream, probs):
        waits = figures | {"in_a_row": torch.zeros_like(figures["in_a_row"])}
        return before | in_slot(waits, "guard"), report
    return _back(member, turn, before["steps"], figures), report._replace(restored=True)


def _source_agrees(turn: Turn, stream: int, probs: Tensor) -> bool:
    """Whether the source gives most of a stream's images the same classes.

    A camera that looks at one thing for long is answered with one class, and rightly: its parameters are not to blame.
    """
    images = turn.split(turn.images)[stream]
    source = turn.of([stream], images, [len(images)]).run(turn.hosted.layers.affine.unsqueeze(0))
    return bool(2 * (source.logits.argmax(1) == probs.argmax(1)).sum() > len(images))


def _back(member: UpdateMember, turn: Turn, steps: Tensor, guard: Tensors) -> Tensors:
    """A new stream at the good parameters. Its own are the source's: that is where a second failure leads."""
    anew, good = initial_update(turn.hosted, member), guard["good"]
    memory = in_slot(member.resumed(good, slot(anew, "memory")), "memory")
    return anew | memory | {"affine": good, "steps": steps, "guard.alarms": guard["alarms"]}


def _norm(turn: Turn, answer: Pass, reports: list[Report]) -> Tensors:
    """The streams' statistics: moved by a step that was taken, and a new stream's where parameters went back.

    What ran through collapsed parameters says nothing of what good ones will see.
    """
    device = turn.images.device
    taken = torch.tensor([report.alarm is Alarm.NONE for report in reports], device=device)
    norm = {name: _where(taken, value.detach(), turn.norm[name]) for name, value in answer.norm.items()}
    restored = torch.tensor([report.restored for report in reports], device=device)
    if not norm or not restored.any():
        return norm
    anew = turn.norm_member.initial(turn.hosted.planned(turn.norm_member).source)
    return {name: _where(restored, anew[name].expand_as(value), value) for name, value in norm.items()}


def _where(rows: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """Rows of `one` where `rows` [S] says so, else of `other`."""
    return torch.where(rows.view(-1, *[1] * (one.dim() - 1)), one, other)
