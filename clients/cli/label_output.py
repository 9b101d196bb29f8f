"""How answers about labels reach the terminal."""

from __future__ import annotations

from statistics import fmean

from rich.console import Group, RenderableType

from normstream.clients.cli.output import facts, table, text
from normstream.clients.label_answers import ClassCount, Labelling, Learning, StreamLabels, StreamScores


def labelling_view(value: Labelling) -> RenderableType:
    """Return what people see of an answer to labels."""
    more = {"had come before": value.duplicates, "not learnt from": value.unlearnt}
    counts = [str(value.labelled), *(f"{count} {what}" for what, count in more.items() if count)]
    return facts(
        {"stream": value.stream, "labelled": ", ".join(counts), **_standing(value.scores), **_learnt(value.learning)}
    )


def scores_view(value: StreamLabels) -> RenderableType:
    """Return what people see of how a stream has done."""
    known = facts({"stream": value.stream, **_standing(value.scores), **_learnt(value.learning)})
    if not value.scores.classes:
        return known
    return Group(known, "", table([_row(count) for count in value.scores.classes]))


def _standing(scores: StreamScores) -> dict[str, str]:
    window = scores.window
    told = {"accuracy": f"{text(scores.accuracy)} of {scores.scored} scored"}
    if window.scored:
        lately = f"{text(window.accuracy)} of the last {window.scored}, calibration error {text(window.ece)}"
        told["lately"] = lately
    return told


def _learnt(learning: Learning | None) -> dict[str, str]:
    if learning is None:
        return {}
    new = f", new: {', '.join(learning.new_classes)}" if learning.new_classes else ""
    return {
        "lessons": f"{learning.lessons} so far{_steps(learning)}",
        "classes": f"{learning.classes}{new}",
        "memory": f"{learning.kept} samples, {learning.kept_bytes:,} bytes",
    }


def _steps(learning: Learning) -> str:
    if not learning.steps:
        return ""
    discarded = [step.discarded for step in learning.steps if step.discarded]
    why = f", {len(discarded)} discarded: {', '.join(dict.fromkeys(discarded))}" if discarded else ""
    losses = [step.loss for step in learning.steps if step.loss is not None]
    loss = text(fmean(losses) if losses else None)
    return f", {len(learning.steps)} now with a mean loss of {loss}{why}"


def _row(count: ClassCount) -> dict[str, str]:
    return {
        "class": count.label,
        "labelled": str(count.labelled),
        "scored": str(count.scored),
        "correct": str(count.correct),
        "accuracy": text(count.correct / count.scored if count.scored else None),
    }
