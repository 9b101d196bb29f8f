"""What goes over the wire about labels: how often a stream was right, and what it has learnt."""

from collections.abc import Sequence
from typing import Self

from pydantic import BaseModel, Field

from normstream.adaptation import Learnt
from normstream.service.scores import WINDOW, Scores
from normstream.service.storage.records import StreamRecord


class ClassScores(BaseModel):
    """The labels of one class."""

    label: str
    labelled: int
    scored: int = Field(description="those whose image had a prediction")
    correct: int = Field(description="those where it was right")


class RecentScores(BaseModel):
    """The last predictions whose labels came."""

    scored: int = Field(description=f"at most {WINDOW}")
    accuracy: float | None
    ece: float | None = Field(description="expected calibration error, over 15 bins of equal width")


class StreamScores(BaseModel):
    """A stream's predictions by the labels that came."""

    labelled: int
    scored: int = Field(description="labels whose image had a prediction")
    correct: int
    accuracy: float | None = Field(description="correct / scored; null before the first")
    window: RecentScores
    classes: list[ClassScores] = Field(description="in the order in which they were first labelled")

    @classmethod
    def of(cls, scores: Scores) -> Self:
        """From the service's own value."""
        total = scores.total
        return cls(
            labelled=total.labelled,
            scored=total.scored,
            correct=total.correct,
            accuracy=total.accuracy,
            window=RecentScores(
                scored=len(scores.window), accuracy=scores.recent_accuracy, ece=scores.calibration_error
            ),
            classes=[
                ClassScores(label=name, labelled=each.labelled, scored=each.scored, correct=each.correct)
                for name, each in scores.classes.items()
            ],
        )


class StreamLearning(BaseModel):
    """What a stream has learnt from labels."""

    lessons: int = Field(description="learning steps so far")
    classes: int
    kept: int = Field(description="samples in its memory")
    kept_bytes: int

    @classmethod
    def of(cls, learnt: Learnt) -> Self:
        """From the library's value."""
        return cls(lessons=learnt.lessons, classes=len(learnt.names), kept=learnt.kept, kept_bytes=learnt.kept_bytes)


class LearningStep(BaseModel):
    """What one learning step did."""

    samples: int = Field(description="labelled images that it learnt from")
    loss: float | None = Field(description="over them and those replayed; null where it was no finite number")
    penalty: float | None = Field(description="the norm layers' own term; null where it was no finite number")
    replayed: int = Field(description="samples from the memory that it learnt again")
    discarded: str | None = Field(description="why it changed nothing; null when it did")


class LearntNow(StreamLearning):
    """The same, and what the labels of a request taught it."""

    steps: list[LearningStep] = Field(description="one after another")
    new_classes: list[str] = Field(description="that came with these labels, in the order of their outputs")


class Labelling(BaseModel):
    """The answer to a labels request."""

    stream: str
    model: str
    step: int = Field(description="adaptation steps of the stream since its source state")
    version: int
    labelled: int = Field(description="labels that this request added")
    duplicates: int = Field(description="labels that had come before, and count once")
    unlearnt: int = Field(description="labels that count, but nothing was kept of their images to learn from")
    scores: StreamScores
    learning: LearntNow | None = Field(description="null where the recipe learns nothing from labels")


class StreamLabels(BaseModel):
    """How a stream has done by the labels that came, the classes that it tells apart, and what it has learnt."""

    stream: str
    scores: StreamScores
    classes: list[str] = Field(description="their names, in the order of the outputs")
    learning: StreamLearning | None = Field(description="null where the recipe learns nothing from labels")

    @classmethod
    def of(cls, record: StreamRecord, names: Sequence[str], learnt: Learnt | None) -> Self:
        """From the store's record and its state."""
        return cls(
            stream=record.id,
            scores=StreamScores.of(Scores.unpack(record.scores)),
            classes=list(names),
            learning=None if learnt is None else StreamLearning.of(learnt),
        )
