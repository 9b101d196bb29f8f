"""The answer to a predict request, as it goes out."""

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Literal, Self

import numpy as np
from pydantic import BaseModel, Field

from normstream.adaptation import Alarm, Report
from normstream.service.engine import Answer
from normstream.service.images import NPY, Images
from normstream.service.samples import sample_id
from normstream.service.storage.records import StreamRecord


class Output(StrEnum):
    """What is told of each image."""

    TOPK = "topk"
    PROBS = "probs"
    LOGITS = "logits"


@dataclass(frozen=True, slots=True)
class Asked:
    """What of a predict request decides its answer, beside the images."""

    adapt: bool
    output: Output
    top_k: int
    npy: bool

    def digest(self, images: Images) -> str:
        """Equal for requests that ask for the same thing."""
        return hashlib.sha256(f"{self}:{images.digest}".encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Predicted:
    """An answer: headers and body."""

    headers: dict[str, str]
    body: bytes

    def pack(self) -> bytes:
        """To bytes that the store keeps under an idempotency key."""
        return json.dumps(self.headers).encode() + b"\n" + self.body

    @classmethod
    def unpack(cls, packed: bytes) -> Self:
        """From bytes that `pack` made."""
        headers, _, body = packed.partition(b"\n")
        return cls(json.loads(headers), body)

    def replayed(self) -> Self:
        """The same, marked as given before."""
        return replace(self, headers=self.headers | {"Idempotent-Replay": "true"})


class ClassScore(BaseModel):
    """One class and how likely it is."""

    index: int = Field(alias="class", serialization_alias="class")
    label: str | None = Field(description="the class's name, when it is known")
    probability: float


class ImagePrediction(BaseModel):
    """What is predicted for one image; `top` or `values`, as asked."""

    sample: str | None = Field(
        None, description="id by which the image's label can come later; null where the server waits for none"
    )
    entropy: float = Field(description="of the predicted distribution, in nats")
    top: list[ClassScore] | None = Field(None, description="the likeliest classes, likeliest first")
    values: list[float] | None = Field(None, description="probabilities or logits of all classes")


ALARMS = tuple(alarm.name.lower() for alarm in Alarm if alarm)


def alarm_name(report: Report) -> str | None:
    """What the collapse guard saw at a step, by the name that goes over the wire."""
    return report.alarm.name.lower() if report.alarm else None


class Update(BaseModel):
    """What a step did to the stream's parameters."""

    moved: bool = Field(description="whether they moved; a step that the guard discards moves nothing")
    alarm: str | None = Field(
        description="why the guard discarded the step; null when it did not",
        json_schema_extra={"enum": [*ALARMS, None]},
    )
    alarms: int = Field(description="steps discarded so far")
    restored: bool = Field(description="whether the stream went back to its last good parameters")
    answered: Literal["before_update"] = Field("before_update", description="which parameters the answer comes from")

    @classmethod
    def of(cls, report: Report) -> Self:
        """From the library's report."""
        return cls(moved=report.moved, alarm=alarm_name(report), alarms=report.alarms, restored=report.restored)


class Prediction(BaseModel):
    """The answer to a predict request."""

    stream: str
    model: str
    step: int = Field(description="adaptation steps of the stream since its source state, this one included")
    version: int
    adapted: bool
    update: Update | None = Field(None, description="left out when no parameters could move")
    predictions: list[ImagePrediction]


def present(
    record: StreamRecord, answer: Answer, asked: Asked, names: Sequence[str] | None, prediction_id: str | None
) -> Predicted:
    """Write the answer.

    Args:
        record: the stream's, from before the step.
        answer: of the engine.
        asked: what of it is wanted.
        names: of the classes, where they are known.
        prediction_id: what the ids of the images begin with; None where no labels are waited for.
    """
    step, version = (answer.step, record.version + 1) if asked.adapt else (record.step, record.version)
    headers = {
        "Normstream-Model": record.model,
        "Normstream-Step": str(step),
        "Normstream-Version": str(version),
        "Normstream-Adapted": str(asked.adapt).lower(),
    }
    if prediction_id is not None:
        headers["Normstream-Samples"] = prediction_id
    update = Update.of(answer.report) if answer.report else None
    if update and update.alarm:
        headers["Normstream-Alarm"] = update.alarm
    if asked.npy:
        return Predicted(headers | {"Content-Type": NPY}, _npy(answer, asked.output))
    prediction = Prediction(
        stream=record.id,
        model=record.model,
        step=step,
        version=version,
        adapted=asked.adapt,
        update=update,
        predictions=[_image(answer, index, asked, names, prediction_id) for index in range(len(answer.probs))],
    )
    unasked: dict[str, Any] = {"predictions": {"__all__": {"values" if asked.output is Output.TOPK else "top"}}}
    if update is None:
        unasked["update"] = True
    body = prediction.model_dump_json(by_alias=True, exclude=unasked).encode()
    return Predicted(headers | {"Content-Type": "application/json"}, body)


def _image(
    answer: Answer, index: int, asked: Asked, names: Sequence[str] | None, prediction_id: str | None
) -> ImagePrediction:
    entropy, probs = float(answer.entropy[index]), answer.probs[index]
    sample = None if prediction_id is None else sample_id(prediction_id, index)
    if asked.output is not Output.TOPK:
        values = probs if asked.output is Output.PROBS else answer.logits[index]
        return ImagePrediction(sample=sample, entropy=entropy, values=values.tolist())
    best = np.argsort(-probs, kind="stable")[: asked.top_k].tolist()
    return ImagePrediction(
        sample=sample,
        entropy=entropy,
        top=[
            ClassScore(**{"class": k, "label": names[k] if names else None, "probability": float(probs[k])})
            for k in best
        ],
    )


def _npy(answer: Answer, output: Output) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, answer.logits if output is Output.LOGITS else answer.probs)
    return buffer.getvalue()
