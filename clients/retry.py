"""When a failed call is sent again, and how long to wait before."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from random import SystemRandom
from typing import Any

import httpx

from normstream.clients.call import Call, Outcome, Repeat
from normstream.clients.errors import InvalidArgument

RETRIED_STATUSES = frozenset({429, 502, 503, 504})

_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
_HOPELESS = (
    httpx.UnsupportedProtocol,
    httpx.LocalProtocolError,
    httpx.DecodingError,
    httpx.TooManyRedirects,
)


@dataclass(frozen=True, slots=True)
class Retry:
    """Exponential back-off with full jitter, on top of what the server asks for in `Retry-After`.

    Attributes:
        retries: How often a call is sent again at most.
        base_s: The longest wait before the first retry; it doubles with each.
        cap_s: The longest wait before any retry.
        retry_after_cap_s: The most that `Retry-After` can add.
        uniform: Draws a number between two others.
    """

    retries: int = 4
    base_s: float = 0.25
    cap_s: float = 8.0
    retry_after_cap_s: float = 30.0
    uniform: Callable[[float, float], float] = SystemRandom().uniform

    def __post_init__(self) -> None:
        if self.retries < 0:
            raise InvalidArgument(f"retries is {self.retries}; give 0 or more")

    def pause_s(self, call: Call[Any], outcome: Outcome, attempt: int) -> float | None:
        """Return how long to wait before `call` is sent again; None when it should not be.

        Args:
            call: The call.
            outcome: What came of its latest attempt.
            attempt: Which attempt that was, counted from 0.
        """
        if attempt >= self.retries or not _repeatable(call.repeat, outcome):
            return None
        backoff_s = self.uniform(0.0, min(self.cap_s, self.base_s * 2**attempt))
        return backoff_s + min(retry_after_s(outcome), self.retry_after_cap_s)


def _repeatable(repeat: Repeat, outcome: Outcome) -> bool:
    if repeat is Repeat.NEVER or isinstance(outcome, _HOPELESS):
        return False
    if isinstance(outcome, httpx.RequestError):
        return repeat is Repeat.ALWAYS or isinstance(outcome, _NEVER_SENT)
    return repeat is Repeat.ALWAYS and outcome.status_code in RETRIED_STATUSES


def retry_after_s(outcome: Outcome) -> float:
    """Return the seconds that `Retry-After` asks for, given as such or as a date; 0 when it says nothing."""
    value = outcome.headers.get("Retry-After", "0") if isinstance(outcome, httpx.Response) else "0"
    try:
        return max(0.0, float(value))
    except ValueError:
        return max(0.0, _until_s(value))


def _until_s(date: str) -> float:
    try:
        return parsedate_to_datetime(date).timestamp() - time.time()
    except ValueError:
        return 0.0
