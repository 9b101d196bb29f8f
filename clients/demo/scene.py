"""What the camera sees: photographs that scikit-image ships, through a moving window."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Self, TypeAlias

import numpy as np
import skimage.data
from numpy.typing import NDArray
from PIL import Image

Frame: TypeAlias = NDArray[np.uint8]  # [SIDE, SIDE, 3]

SIDE = 224
# The photographs in scikit-image's wheel that show something of the everyday world, all of them; the rest
# are textures, drawings, and views through microscopes and telescopes.
PHOTOGRAPHS = ("chelsea", "coffee", "stereo_motorcycle", "camera", "rocket", "astronaut")
NARROW, WIDE = 0.8, 1.0  # of a photograph's shorter side
# How many frames one sweep across, one sweep down and one zoom take: no two in step, so that views do not recur.
ACROSS, DOWN, ZOOM = 53.0, 71.0, 37.0


@dataclass(frozen=True)
class Camera:
    """A camera on its round: it looks at one place, goes on to the next, and begins again.

    At each place its window pans and zooms smoothly, so that every visit shows another view. A frame depends on its
    index and the seed alone.

    Attributes:
        places: The photographs.
        phases: Where the pan across, the pan down and the zoom of each place begin, `[P, 3]` in radians.
        stay: Frames at one place before the camera goes on.
    """

    places: tuple[Image.Image, ...]
    phases: NDArray[np.float64] = field(repr=False)
    stay: int = 1

    @classmethod
    def on_round(cls, seed: int, stay: int = 1) -> Self:
        """Put a camera before the photographs."""
        places = tuple(photograph(name) for name in PHOTOGRAPHS)
        return cls(places, np.random.default_rng(seed).uniform(0, 2 * math.pi, (len(places), 3)), stay)

    def place(self, index: int) -> int:
        """Which place frame `index` shows."""
        return index // self.stay % len(self.places)

    def frame(self, index: int) -> Frame:
        """Frame `index`, uint8 `[SIDE, SIDE, 3]`."""
        photo = self.places[self.place(index)]
        view = photo.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=self._window(index))
        return np.asarray(view)

    def _window(self, index: int) -> tuple[float, float, float, float]:
        """Left, upper, right and lower edge of the window on its photograph."""
        place = self.place(index)
        width, height = self.places[place].size
        periods = np.array([ACROSS, DOWN, ZOOM])
        across, down, zoom = 0.5 + 0.5 * np.sin(2 * math.pi * index / periods + self.phases[place])
        side = min(width, height) * (NARROW + (WIDE - NARROW) * zoom)
        left, upper = (width - side) * across, (height - side) * down
        return float(left), float(upper), float(left + side), float(upper + side)


def photograph(name: str) -> Image.Image:
    """Read a photograph of scikit-image in colour; of a stereo pair, the left one."""
    pixels = getattr(skimage.data, name)()
    return Image.fromarray(pixels[0] if isinstance(pixels, tuple) else pixels).convert("RGB")
