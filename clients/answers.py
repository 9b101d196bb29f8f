"""What the server answers about models, recipes, streams and predictions, as frozen values."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

from normstream.clients.reading import (
    OPTIONAL_TUPLE,
    TIME,
    TUPLE,
    each,
    expecting,
    json_of,
    one,
    optional,
    read,
)


@dataclass(frozen=True, slots=True)
class NormLayer:
    """A normalisation layer, whose parameters a recipe can move; its statistics too if `statistics` says so."""

    path: str
    kind: str
    channels: int
    statistics: bool


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """How an image becomes a model's input; `mean` and `std` are those of pixels between 0 and 1."""

    interpolation: str
    mean: tuple[float, ...] = field(metadata=TUPLE)
    std: tuple[float, ...] = field(metadata=TUPLE)
    crop_pct: float
    crop_mode: str


@dataclass(frozen=True, slots=True)
class Model:
    """A hosted model."""

    name: str
    architecture: str
    fingerprint: str
    parameters: int
    classes: int
    input_size: tuple[int, ...] = field(metadata=TUPLE)
    device: str
    memory_format: str
    preprocessing: Preprocessing = field(metadata=one(Preprocessing))
    classifier: bool
    calibrated: bool
    norm_layers: tuple[NormLayer, ...] = field(metadata=each(NormLayer))
    labels: tuple[str, ...] | None = field(default=None, metadata=OPTIONAL_TUPLE)


@dataclass(frozen=True, slots=True)
class Models:
    """The hosted models, and the name of the one that streams get when they name none."""

    models: tuple[Model, ...] = field(metadata=each(Model))
    default: str

    def __iter__(self) -> Iterator[Model]:
        return iter(self.models)

    def __len__(self) -> int:
        return len(self.models)


@dataclass(frozen=True, slots=True)
class Recipes:
    """The named recipes, and the JSON schema of a recipe of one's own."""

    presets: Mapping[str, Mapping[str, Any]]
    schema: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Parameter:
    """One value that a method takes; `range` is in the notation of intervals, and None where there are no bounds."""

    name: str
    type: str
    default: Any
    range: str | None
    minimum: float | None
    maximum: float | None
    choices: tuple[str, ...] | None = field(metadata=OPTIONAL_TUPLE)
    description: str


@dataclass(frozen=True, slots=True)
class Method:
    """A member that recipes can be made of.

    Attributes:
        slot: Where in a recipe it goes: "norm", "update", "output", "learn.method" or "learn.norm".
        name: Its name there, and that of its preset.
        summary: What it does, in one sentence.
        text: All about it, in paragraphs.
        citations: Numbers of arXiv, its own paper first.
        parameters: What can be set.
        layers: The kind of layers that it needs of a model, if any.
        backward: Whether a step has a backward pass.
        classifier: Whether the model must end in a linear classifier.
        calibration: Whether the model must be calibrated.
        extra_forwards: Forward passes beside the one that answers, in words.
        cost: What a step costs beside the forward pass that every recipe shares, in a word.
        preset: The recipe of its name.
    """

    slot: str
    name: str
    summary: str
    text: tuple[str, ...] = field(metadata=TUPLE)
    citations: tuple[str, ...] = field(metadata=TUPLE)
    parameters: tuple[Parameter, ...] = field(metadata=each(Parameter))
    layers: str | None
    backward: bool
    classifier: bool
    calibration: bool
    extra_forwards: str
    cost: str
    preset: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Methods:
    """The members of all slots, slot by slot."""

    methods: tuple[Method, ...] = field(metadata=each(Method))

    def __iter__(self) -> Iterator[Method]:
        return iter(self.methods)

    def __len__(self) -> int:
        return len(self.methods)

    def __getitem__(self, name: str) -> Method:
        for method in self.methods:
            if method.name == name:
                return method
        raise KeyError(name)


@dataclass(frozen=True, slots=True)
class Stream:
    """A stream and how far its state has come.

    Attributes:
        id: Its name.
        model: The model that it adapts.
        fingerprint: The fingerprint of that model's weights.
        recipe: How it adapts, in full.
        step: Adaptation steps since the source state.
        version: Changes of any kind; never goes back.
        generation: Changes when a stream is deleted and made anew under the same id.
        state_bytes: The size of its state.
        idle_ttl_s: After how long without a request it is dropped; None for never.
        created_at: When it was made.
        updated_at: When it last changed.
    """

    id: str
    model: str
    fingerprint: str
    recipe: Mapping[str, Any]
    step: int
    version: int
    generation: str
    state_bytes: int
    idle_ttl_s: float | None
    created_at: datetime = field(metadata=TIME)
    updated_at: datetime = field(metadata=TIME)


@dataclass(frozen=True, slots=True)
class StreamPage:
    """Some streams in order of id, and the id after which the next page begins."""

    streams: tuple[Stream, ...] = field(metadata=each(Stream))
    next: str | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A kept copy of a stream's state."""

    id: str
    stream: str
    model: str
    fingerprint: str
    recipe: Mapping[str, Any]
    step: int
    bytes: int
    created_at: datetime = field(metadata=TIME)


@dataclass(frozen=True, slots=True)
class SnapshotList:
    """The snapshots of a stream, newest first."""

    snapshots: tuple[Snapshot, ...] = field(metadata=each(Snapshot))


@dataclass(frozen=True, slots=True)
class ClassScore:
    """A class and its probability."""

    index: int = field(metadata={"key": "class"})
    label: str
    probability: float


@dataclass(frozen=True, slots=True)
class ImagePrediction:
    """What the model sees in one image.

    Attributes:
        entropy: Over all classes, in nats.
        top: The likeliest classes.
        sample: The image's id, by which a label that comes later names it; None where the server keeps none.
    """

    entropy: float
    top: tuple[ClassScore, ...] = field(metadata=each(ClassScore))
    sample: str | None = None


@dataclass(frozen=True, slots=True)
class Update:
    """What a step did to the stream's own parameters.

    Attributes:
        moved: Whether they moved.
        alarm: Why the collapse guard discarded the step: "non_finite", "entropy_collapse", "diversity_collapse", or
            one that a newer server knows; None when it did not.
        alarms: Steps discarded so far.
        restored: Whether the stream went back to its last good parameters.
        answered: Which parameters the answer comes from.
    """

    moved: bool
    alarm: str | None
    alarms: int
    restored: bool
    answered: str


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """The answer to one predict call.

    Attributes:
        stream: The stream's id.
        step: The stream's step after the call.
        version: Its version after the call.
        adapted: Whether the call moved the state.
        model: The model's name.
        predictions: One entry per image; empty when `values` was asked for.
        values: Probabilities or logits, float32 `[B, classes]`; None unless asked for.
        samples: The images' ids, by which labels that come later name them; None where the server keeps none.
        replayed: Whether the server had done this call before, and answers its first answer again.
        alarm: Why the collapse guard discarded the step; None when it did not.
        update: More of what the step did to parameters; None when none could move, and beside `values`.
    """

    stream: str
    step: int
    version: int
    adapted: bool
    model: str | None = None
    predictions: tuple[ImagePrediction, ...] = field(default=(), metadata=each(ImagePrediction))
    values: NDArray[np.float32] | None = None
    samples: tuple[str, ...] | None = None
    replayed: bool = False
    alarm: str | None = None
    update: Update | None = field(default=None, metadata=optional(Update))


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """Something that happened to a stream.

    Attributes:
        kind: "step", "alarm", "learnt", "taught", "reset", "restore", "deleted", or one that a newer server knows.
        id: Its id, with which `events` resumes after it.
        data: All that the server said.
        step: The stream's step after the event.
        version: The stream's version after the event.
        images: How many images a step saw.
        entropy: The mean entropy of a step's predictions, in nats.
        drift: How far a step's moments lay from the source's, by layer.
        moved: Whether a step moved parameters; None when none could move.
        alarm: Why the collapse guard discarded a step, if it did.
        alarms: Steps that it discarded so far.
        restored: Whether an alarm took the stream back to its last good parameters.
        samples: How many samples a lesson was of.
        loss: Of a lesson from labels.
        new_classes: Classes that came with it.
    """

    kind: str
    id: str | None
    data: Mapping[str, Any]
    step: int | None = None
    version: int | None = None
    images: int | None = None
    entropy: float | None = None
    drift: Mapping[str, float] = field(default_factory=dict)
    moved: bool | None = None
    alarm: str | None = None
    alarms: int | None = None
    restored: bool | None = None
    samples: int | None = None
    loss: float | None = None
    new_classes: tuple[str, ...] = field(default=(), metadata=TUPLE)


def read_prediction(response: httpx.Response) -> Prediction:
    """Read the predictions of classes."""
    headers = response.headers
    told = {"replayed": headers.get("Idempotent-Replay") == "true", "alarm": headers.get("Normstream-Alarm")}
    prediction = read(Prediction, {**json_of(response), **told})
    samples = tuple(image.sample for image in prediction.predictions if image.sample is not None)
    return replace(prediction, samples=samples or None)


def read_values(stream: str, response: httpx.Response) -> Prediction:
    """Read the predictions that are an array, with the rest of them in the headers."""
    headers = response.headers
    with expecting("array of predictions"):
        values = np.lib.format.read_array(io.BytesIO(response.content), allow_pickle=False)
        request = headers.get("Normstream-Samples")
        return Prediction(
            stream=stream,
            model=headers.get("Normstream-Model"),
            step=int(headers["Normstream-Step"]),
            version=int(headers["Normstream-Version"]),
            adapted=headers["Normstream-Adapted"].lower() == "true",
            values=values,
            samples=tuple(f"{request}-{index}" for index in range(len(values))) if request else None,
            replayed=headers.get("Idempotent-Replay") == "true",
            alarm=headers.get("Normstream-Alarm"),
        )
