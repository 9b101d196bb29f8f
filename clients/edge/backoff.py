"""How long to wait before a failed attempt is made again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import SystemRandom

uniform: Callable[[float, float], float] = SystemRandom().uniform
LONGEST_RETRY_AFTER_S = 3600.0  # what a server may ask for at most


@dataclass(slots=True)
class Backoff:
    """Exponential back-off with full jitter, for ever: an edge never gives up on its server.

    Attributes:
        base_s: The longest pause after the first failure; it doubles with each.
        cap_s: The longest pause after any failure.
        uniform: Draws a number between two others.
        failures: Failures in a row so far.
    """

    base_s: float = 1.0
    cap_s: float = 60.0
    uniform: Callable[[float, float], float] = uniform
    failures: int = 0

    def pause_s(self, retry_after_s: float = 0.0) -> float:
        """Count a failure, and return how long to wait; what the server asked for comes on top."""
        longest_s = min(self.cap_s, self.base_s * 2.0 ** min(self.failures, 32))
        self.failures += 1
        return self.uniform(0.0, longest_s) + min(retry_after_s, LONGEST_RETRY_AFTER_S)

    def succeed(self) -> None:
        """Begin anew."""
        self.failures = 0
