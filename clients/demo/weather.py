"""What comes between the scene and the sensor: corruptions of ImageNet-C, one per phase.

Hendrycks and Dietterich 2019, arXiv:1903.12261; made by `imagecorruptions`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from imagecorruptions import corrupt

from normstream.clients.demo.scene import Frame

SEVERITY = 3  # the middle of the five, for every phase


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of the stream under one kind of weather.

    Attributes:
        name: What people read.
        corruption: Its name in ImageNet-C; None for a clear view.
    """

    name: str
    corruption: str | None = None

    def spoil(self, frame: Frame, seed: int) -> Frame:
        """The frame as the sensor gets it; the same seed gives the same weather."""
        if self.corruption is None:
            return frame
        with _seeded(seed):
            spoilt: Frame = corrupt(frame, severity=SEVERITY, corruption_name=self.corruption)
        return spoilt


# Weather first, then the camera's own faults, and in the end a clear view, for the way back.
PHASES = (
    Phase("clear"),
    Phase("fog", "fog"),
    Phase("snow", "snow"),
    Phase("low contrast", "contrast"),
    Phase("sensor noise", "gaussian_noise"),
    Phase("motion blur", "motion_blur"),
    Phase("clear again"),
)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed NumPy's global generator, which the corruptions draw from, and put it back afterwards."""
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)
