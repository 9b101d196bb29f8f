"""What can go wrong, as one tree.

NormstreamError
├── InvalidArgument (a ValueError too)   refused here, before anything was sent
├── ConnectionFailed                     no answer came
├── UnexpectedAnswer                     an answer came that this client cannot read
└── ApiError                             the server said no (problem details, RFC 9457)
    ├── BadRequest     400
    ├── NotFound       404
    ├── Conflict       409
    ├── TooLarge       413
    ├── InvalidInput   422
    ├── Overloaded     429
    ├── Unavailable    502, 503
    └── TimedOut       504
"""
# ruff: noqa: N818, A002 - the names are those of the problems, and of the fields of RFC 9457

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx


class NormstreamError(Exception):
    """Anything that this package raises on purpose."""


class InvalidArgument(NormstreamError, ValueError):
    """An argument was refused before anything was sent."""


class ConnectionFailed(NormstreamError):
    """No answer came: no connection, a broken one, or none in time."""


class UnexpectedAnswer(NormstreamError):
    """An answer came, but not one that this client can read."""


@dataclass(frozen=True, slots=True)
class FieldProblem:
    """One wrong part of a request: where it is, and what is wrong with it."""

    where: str
    problem: str

    def __str__(self) -> str:
        return f"{self.where}: {self.problem}"


class ApiError(NormstreamError):
    """The server refused a call, or failed at it.

    Attributes:
        status: The HTTP status.
        title: The kind of problem, in a few words.
        detail: What was wrong this time, and what to do.
        errors: The fields that were wrong, if any.
        type: The URI of the kind of problem.
    """

    def __init__(
        self,
        status: int,
        title: str,
        detail: str = "",
        errors: tuple[FieldProblem, ...] = (),
        type: str = "about:blank",
    ) -> None:
        super().__init__(status, title, detail, errors, type)
        self.status = status
        self.title = title
        self.detail = detail
        self.errors = errors
        self.type = type

    def __str__(self) -> str:
        message = f"{self.title} ({self.status})"
        message += f": {self.detail}" if self.detail else ""
        return message + (f" [{'; '.join(map(str, self.errors))}]" if self.errors else "")


class BadRequest(ApiError):
    """The body was not what its content type said."""


class NotFound(ApiError):
    """There is no such stream, model, snapshot or path."""


class Conflict(ApiError):
    """What exists does not fit: another model or recipe, a taken id, a change elsewhere."""


class TooLarge(ApiError):
    """The body, the number of images or the number of pixels is over the server's limit."""


class InvalidInput(ApiError):
    """A field, an image, an array or a recipe is wrong; `errors` names each."""


class Overloaded(ApiError):
    """The server's queue was full, each time this client tried."""


class Unavailable(ApiError):
    """The server cannot serve now: its store is away, or it is shutting down."""


class TimedOut(ApiError):
    """The request waited in the server for longer than its limit."""


_BY_STATUS: dict[int, type[ApiError]] = {
    400: BadRequest,
    404: NotFound,
    409: Conflict,
    413: TooLarge,
    422: InvalidInput,
    429: Overloaded,
    502: Unavailable,
    503: Unavailable,
    504: TimedOut,
}


def api_error(response: httpx.Response) -> ApiError:
    """Return the error that an answer other than 2xx stands for."""
    status = response.status_code
    problem = _problem(response)
    return _BY_STATUS.get(status, ApiError)(
        status,
        title=str(problem.get("title") or response.reason_phrase or "Unexpected status"),
        detail=str(problem.get("detail") or ""),
        errors=_field_problems(problem.get("errors")),
        type=str(problem.get("type") or "about:blank"),
    )


def _problem(response: httpx.Response) -> Mapping[str, Any]:
    """Return the problem details; of a foreign answer (a proxy's page) the beginning of its text."""
    try:
        problem = response.json()
    except ValueError:
        problem = None
    return problem if isinstance(problem, Mapping) else {"detail": " ".join(response.text.split())[:200]}


def _field_problems(errors: Any) -> tuple[FieldProblem, ...]:
    entries = [entry for entry in errors if isinstance(entry, Mapping)] if isinstance(errors, list) else []
    return tuple(FieldProblem(str(e.get("where", "")), str(e.get("problem", ""))) for e in entries)
