"""What the server answers about labels, as frozen values."""

from __future__ import annotations

from dataclasses import dataclass, field

from normstream.clients.reading import TUPLE, each, one, optional


@dataclass(frozen=True, slots=True)
class RecentScores:
    """How the last images did whose label came; `ece` is the expected calibration error, and None is for no image."""

    scored: int
    accuracy: float | None
    ece: float | None


@dataclass(frozen=True, slots=True)
class ClassCount:
    """The labels that named one class: all, those whose image had a prediction, and those where it was right."""

    label: str
    labelled: int
    scored: int
    correct: int


@dataclass(frozen=True, slots=True)
class StreamScores:
    """A stream's predictions by the labels that came.

    Attributes:
        labelled: Labels.
        scored: Those whose image had a prediction; an image that comes with its label is predicted first.
        correct: Those where that was right.
        accuracy: The share of them; None before the first.
        window: The same of the last ones.
        classes: The same class by class.
    """

    labelled: int
    scored: int
    correct: int
    accuracy: float | None
    window: RecentScores = field(metadata=one(RecentScores))
    classes: tuple[ClassCount, ...] = field(metadata=each(ClassCount))


@dataclass(frozen=True, slots=True)
class LearningStep:
    """One step of a lesson.

    Attributes:
        samples: New labelled samples.
        loss: Over them and the replayed ones; None where it was no finite number.
        penalty: Of the norm layers, beside the loss; None where it was no finite number.
        replayed: Samples from memory.
        discarded: Why the step was not kept; None when it was.
    """

    samples: int
    loss: float | None
    penalty: float | None
    replayed: int
    discarded: str | None = None


@dataclass(frozen=True, slots=True)
class Learning:
    """What a stream has learnt from labels.

    Attributes:
        lessons: Steps so far.
        classes: Classes that it tells apart now.
        kept: Samples in its memory.
        kept_bytes: Their size, with the logits that are kept of them.
        steps: What this call's labels taught it, step by step.
        new_classes: Classes that came with this call.
    """

    lessons: int
    classes: int
    kept: int
    kept_bytes: int
    steps: tuple[LearningStep, ...] = field(default=(), metadata=each(LearningStep))
    new_classes: tuple[str, ...] = field(default=(), metadata=TUPLE)


@dataclass(frozen=True, slots=True)
class Labelling:
    """The answer to one call with labels.

    Attributes:
        stream: The stream's id.
        model: The model's name.
        step: The stream's step after the call.
        version: Its version after the call.
        labelled: Labels that were counted.
        duplicates: Labels that had come before, and count once.
        unlearnt: Labels that were counted but not learnt from, for nothing was kept of their image.
        scores: How the stream has done so far.
        learning: What it has learnt; None when its recipe learns nothing from labels.
    """

    stream: str
    model: str
    step: int
    version: int
    labelled: int
    duplicates: int
    unlearnt: int
    scores: StreamScores = field(metadata=one(StreamScores))
    learning: Learning | None = field(default=None, metadata=optional(Learning))


@dataclass(frozen=True, slots=True)
class StreamLabels:
    """How a stream has done by the labels that came, the classes it tells apart, and what it has learnt."""

    stream: str
    scores: StreamScores = field(metadata=one(StreamScores))
    classes: tuple[str, ...] = field(metadata=TUPLE)
    learning: Learning | None = field(default=None, metadata=optional(Learning))
