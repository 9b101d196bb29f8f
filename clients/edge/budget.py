"""What an edge may send, in bytes per hour."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass, field

_SCORES = 256  # how many scores make up the scale on which a new one is ranked
_EASY = 0.5  # above this part of its capacity the bucket lets everything pass


@dataclass(slots=True)
class Allowance:
    """A token bucket: bytes that may go, growing with time up to a capacity.

    What is larger than the capacity may go when the bucket is full, and what it costs above that is paid off before
    the next: else an edge whose samples are large would never send one.

    It is data: `dataclasses.asdict` makes JSON of it, `Allowance(**...)` brings it back.

    Attributes:
        bytes_per_hour: The rate; 0 lets nothing pass, infinity everything.
        burst_bytes: The capacity: what may go at once after a quiet time.
        level: Bytes that may go now; below 0 what is still to be paid off.
        filled_at: When the level was right, in unix seconds; None before it was first looked at.
    """

    bytes_per_hour: float = math.inf
    burst_bytes: float = math.inf
    level: float = math.nan
    filled_at: float | None = None

    def __post_init__(self) -> None:
        if not self.bytes_per_hour >= 0 or not self.burst_bytes >= 0:
            raise ValueError(
                f"bytes_per_hour is {self.bytes_per_hour} and burst_bytes {self.burst_bytes}; give 0 or more"
            )
        self.level = self.burst_bytes if math.isnan(self.level) else min(self.level, self.burst_bytes)

    def available(self, now: float) -> float:
        """Return how many bytes may go.

        Args:
            now: The time in unix seconds; a clock that was set back refills nothing.
        """
        if math.isinf(self.bytes_per_hour):
            return math.inf
        elapsed_s = 0.0 if self.filled_at is None else max(0.0, now - self.filled_at)
        self.level = min(self.burst_bytes, self.level + elapsed_s * self.bytes_per_hour / 3600)
        self.filled_at = now
        return self.level

    def lacking_s(self, size: int, now: float) -> float:
        """Return in how many whole seconds so many bytes may go; 0 when they may."""
        available = self.available(now)
        if size <= available or 0 < self.burst_bytes <= available:
            return 0.0
        if not self.bytes_per_hour or not self.burst_bytes:
            return math.inf
        return math.ceil((min(size, self.burst_bytes) - available) * 3600 / self.bytes_per_hour)

    def spend(self, size: int) -> None:
        """Note that so many bytes go; fewer than none gives back what did not."""
        self.level -= size


@dataclass(slots=True)
class TokenBucket(Allowance):
    """An allowance that raises the bar as it empties, so that when it is tight the most informative samples pass.

    A sample passes when its score is among the best part `p` of the latest ones, where p is 1 down to a half full
    bucket and from there falls to 0 with its level. Where more is wanted than the rate allows the level settles at
    the p that can be paid for.

    Attributes:
        scores: The latest ones, of samples that passed and of others.
    """

    scores: list[float] = field(default_factory=list)

    def take(self, size: int, score: float, now: float) -> bool:
        """Return whether a sample may go, and if so spend its bytes.

        Args:
            size: Its bytes.
            score: How informative it is.
            now: The time in unix seconds.
        """
        if math.isinf(self.bytes_per_hour):
            return True
        passes = not self.lacking_s(size, now) and self._rank(score) >= 1 - self._share()
        self.scores = [*self.scores[1 - _SCORES :], score]
        if passes:
            self.spend(size)
        return passes

    def _share(self) -> float:
        """Return the part of the samples that may pass at this level."""
        return min(1.0, self.level / (_EASY * self.burst_bytes)) if self.burst_bytes else 0.0

    def _rank(self, score: float) -> float:
        """Return the part of the latest scores that is below this one, counting it in: at most 1."""
        ordered = sorted(self.scores)
        return (bisect_left(ordered, score) + 1) / (len(ordered) + 1)
