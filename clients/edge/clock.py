"""The time, as something that is passed in."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Clock:
    """Two ways to tell the time.

    Attributes:
        unix_s: Seconds since 1970, which jump when the machine learns the right time.
        elapsed_s: Seconds since any moment, which never jump; pauses go by these.
    """

    unix_s: Callable[[], float] = time.time
    elapsed_s: Callable[[], float] = time.monotonic
