"""How often something may be done that is worth doing and takes time from the images."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

LONGEST_S = 60.0  # of rest: a process that was stopped in the middle of something goes on soon


class Pace:
    """Keeps what is done now and then to a share of all time, by a rest after each time; for any number of threads.

    Args:
        share: Of the time, above 0; what takes a second is followed by a rest of 1 / share seconds, at most a minute.
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
            now = self._elapsed_s()
            self._rested_at = min(max(self._rested_at, now) + seconds / self._share, now + LONGEST_S)
