"""The streams: each recipe sees the same images in the same batches and order, in a stream of its own."""

import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from normstream.adaptation import (
    PRESETS,
    HostedModel,
    HostingError,
    Recipe,
    Request,
    Result,
    StreamState,
    initial_state,
    step,
)
from normstream.adaptation.bench.datasets import Pixels
from normstream.adaptation.bench.errors import BenchError
from normstream.adaptation.bench.metrics import Score, calibration_error
from normstream.adaptation.bench.orders import Indices, Order, arrange
from normstream.adaptation.member import Member, Need

Reset: TypeAlias = Literal["continual", "each_shift"]

CALIBRATED = {Need.SOURCE_MOMENTS, Need.FISHER, Need.SOURCE_FEATURES}


@dataclass(frozen=True, slots=True)
class Contender:
    """A recipe and what tables call it."""

    name: str
    recipe: Recipe

    @classmethod
    def parse(cls, text: str) -> "Contender":
        """From a preset's name or a recipe's JSON.

        >>> Contender.parse('{"norm": {"name": "alpha_bn", "alpha": 0.5}}').name
        'alpha_bn(alpha=0.5)'
        """
        try:
            recipe = Recipe.parse(text)
        except ValueError as error:
            raise BenchError(f"--recipe: {error}") from None
        preset = next((name for name, value in PRESETS.items() if value == recipe), None)
        return cls(preset or _spelt_out(recipe), recipe)

    def begin(self, hosted: HostedModel) -> StreamState:
        """The state of a new stream.

        Raises:
            BenchError: when the model cannot follow the recipe.
        """
        if hosted.calibration is None and any(member.needs & CALIBRATED for member in self.recipe.members):
            raise BenchError(f"--recipe: {self.name!r} needs a calibrated model; give --calibrate PATH")
        try:
            return initial_state(hosted, self.recipe)
        except HostingError as error:
            raise BenchError(f"--recipe: {error}") from None


def _spelt_out(recipe: Recipe) -> str:
    """The members' names, each with the hyper-parameters that are not its defaults."""
    changing = [member for member in recipe.members if member.name != "source"]
    return " x ".join(map(_called, changing or recipe.members))


def _called(member: Member) -> str:
    given = member.model_dump(exclude={"name"}, exclude_defaults=True)
    changes = ", ".join(f"{name}={value}" for name, value in given.items())
    return f"{member.name}({changes})" if changes else member.name


@dataclass(frozen=True, slots=True, eq=False)
class Stream:
    """What a stream sees, one corruption after another."""

    segments: Mapping[str, Pixels]  # by corruption, each [N, H, W, 3]
    labels: Indices  # [N]
    order: Order
    delta: float
    batch: int
    reset: Reset
    seed: int

    def batches(self, corruption: str) -> Iterator[tuple[Pixels, Indices]]:
        """Images and labels, a batch at a time; the last may be smaller."""
        rng = np.random.default_rng((self.seed, zlib.crc32(corruption.encode())))
        order = arrange(self.labels, self.order, self.delta, rng)
        for start in range(0, len(order), self.batch):
            places = order[start : start + self.batch]
            yield self.segments[corruption][places], self.labels[places]


def follow(
    hosted: HostedModel, contender: Contender, stream: Stream, advance: Callable[[int], None]
) -> Iterator[Score]:
    """Serve a stream by a recipe, and score it after each corruption; `advance` is told how many images are served."""
    source = contender.begin(hosted)
    state = source
    _warm_up(hosted, state, stream)
    for corruption in stream.segments:
        if stream.reset == "each_shift":
            state = source
        tally = _Tally()
        for pixels, labels in stream.batches(corruption):
            images = normalised(hosted, pixels)
            begin = time.perf_counter()
            [result] = step(hosted, [Request(state, images)])
            tally.add(result, labels, time.perf_counter() - begin)
            state = result.state
            advance(len(labels))
        yield tally.score(corruption, state)


def _warm_up(hosted: HostedModel, state: StreamState, stream: Stream) -> None:
    """One step that nobody scores: the first in a process is slower than all others."""
    pixels, _ = next(stream.batches(next(iter(stream.segments))))
    step(hosted, [Request(state, normalised(hosted, pixels))])


def normalised(hosted: HostedModel, pixels: Pixels) -> Tensor:
    """Images as the network takes them, [B, 3, H, W], from [B, H, W, 3]."""
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (hosted.preprocessing.mean, hosted.preprocessing.std))
    images = torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2) / 255
    return ((images - mean) / std).to(hosted.device)


@dataclass(slots=True)
class _Tally:
    """What a stream answered under one corruption."""

    confidence: list[NDArray[np.floating]] = field(default_factory=list)  # of the predicted class, [B] for each batch
    correct: list[NDArray[np.bool_]] = field(default_factory=list)
    seconds: float = 0.0
    alarms: int = 0

    def add(self, result: Result, labels: Indices, seconds: float) -> None:
        confidence, predicted = result.logits.double().softmax(1).max(1)
        self.confidence.append(confidence.cpu().numpy())
        self.correct.append(predicted.cpu().numpy() == labels)
        self.seconds += seconds
        self.alarms += result.report is not None and bool(result.report.alarm)

    def score(self, corruption: str, state: StreamState) -> Score:
        correct = np.concatenate(self.correct)
        ece = calibration_error(np.concatenate(self.confidence), correct)
        return Score(corruption, len(correct), int((~correct).sum()), ece, self.seconds, state.bytes, self.alarms)


def contenders(texts: Sequence[str]) -> list[Contender]:
    """The recipes, each once."""
    found = [Contender.parse(text) for text in texts]
    return list({contender.recipe.canonical(): contender for contender in found}.values())
