"""How often something may be done that is worth doing and takes time from the images."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Pace:
    """Keeps what is done now and then to a share of all time, by a rest after each time; for any number of threads.

    Args:
        share: Of the time, above 0; what takes a second is followed by a rest of 1 / share seconds.
        elapsed_s: Tells the time; it never jumps.
    """

    def __init__(self, share: float, elapsed_s: Callable[[], float] = time.monotonic) -> None:
        self._share = share
        self._elapsed_s = elapsed_s
        self._rested_at = -float("inf")
        self._lock = threading.Lock()

    @property
    def due(self) -> bool:
        """Whether the rest is over."""
        return self._elapsed_s() >= self._rested_at

    def spent(self, seconds: float) -> None:
        """Rest for what has been done, after what is left of the rest before."""
        with self._lock:
            self._rested_at = max(self._rested_at, self._elapsed_s()) + seconds / self._share
