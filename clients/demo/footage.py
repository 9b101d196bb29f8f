"""The camera's frames, phase after phase, in batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from normstream.clients.demo.scene import Camera, Frame
from normstream.clients.demo.weather import Phase

Frames: TypeAlias = NDArray[np.uint8]  # [B, SIDE, SIDE, 3]


@dataclass(frozen=True, slots=True)
class Batch:
    """Frames of one phase, as they are and as the sensor gets them."""

    phase: str
    clean: Frames
    spoilt: Frames


@dataclass(frozen=True, slots=True)
class Footage:
    """What a camera films.

    Attributes:
        camera: The camera.
        phases: The weather, in order.
        frames: How many frames each phase lasts.
        seed: The weather's seed.
    """

    camera: Camera
    phases: tuple[Phase, ...]
    frames: int
    seed: int

    def __len__(self) -> int:
        """How many frames there are."""
        return self.frames * len(self.phases)

    def clean(self, index: int) -> Frame:
        """Frame `index` in a clear view."""
        return self.camera.frame(index)

    def spoilt(self, index: int) -> Frame:
        """Frame `index` as the sensor gets it."""
        seed = int(np.random.SeedSequence((self.seed, index)).generate_state(1)[0])
        return self.phases[index // self.frames].spoil(self.clean(index), seed)

    def batches(self, size: int) -> Iterator[Batch]:
        """Yield all frames in order; the last batch of a phase may be smaller."""
        for number, phase in enumerate(self.phases):
            first = number * self.frames
            for start in range(first, first + self.frames, size):
                span = range(start, min(start + size, first + self.frames))
                clean, spoilt = (np.stack([film(i) for i in span]) for film in (self.clean, self.spoilt))
                yield Batch(phase.name, clean, spoilt)

    def sample(self, number: int) -> Frame:
        """A frame from the middle of phase `number`; all samples show the camera's first place, if they can."""
        first = number * self.frames
        order = sorted(range(first, first + self.frames), key=lambda i: abs(i - first - self.frames // 2))
        return self.spoilt(next((i for i in order if self.camera.place(i) == 0), order[0]))
