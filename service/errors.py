"""What can go wrong with a request, and how it is told: RFC 9457 problem details.

Problem
├── BadRequest          400  the body is not what its Content-Type says
├── Unauthorised        401  an edge's call without its key
├── Forbidden           403  an edge's call with another key
├── NotFound            404  unknown stream, model, snapshot, edge
├── Conflict            409  the stream, model, snapshot or edge does not fit what was asked
├── TooLarge            413  body, images or pixels over the limit
├── RangeUnsatisfiable  416  a part of a file that begins after its end
├── Unsupported         415  a Content-Type that is not served
├── Invalid             422  a field, image, array or recipe is wrong
├── Overloaded          429  the queue is full; comes with Retry-After
├── Unavailable         503  the store is away, or the server shuts down; comes with Retry-After
└── TimedOut            504  the request waited too long
"""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, ClassVar

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from normstream.service.storage.records import Conflict as StoreConflict
from normstream.service.storage.records import (
    Incomplete,
    QueueFull,
    StoreUnavailable,
    StreamExists,
    UnknownEdge,
    UnknownSnapshot,
    UnknownStream,
)

MEDIA_TYPE = "application/problem+json"
CLIENT_CLOSED_REQUEST = 499


class Fault(BaseModel):
    """One thing that is wrong with a request."""

    where: str = Field(description="such as body.recipe.alpha or images.3")
    problem: str


class ProblemDetails(BaseModel):
    """RFC 9457: what went wrong."""

    type: str = Field(description="names the kind of problem, for programs")
    title: str
    status: int
    detail: str = Field(description="what was wrong, the value seen, what to do")
    errors: list[Fault] = []


class Problem(HTTPException):
    """A request that is answered with an error; nothing has changed."""

    status: ClassVar[HTTPStatus]
    title: ClassVar[str]

    def __init__(
        self,
        detail: str,
        errors: Sequence[Fault] = (),
        retry_after_s: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        retry = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
        super().__init__(self.status, detail, {**(headers or {}), **retry})
        self.errors = list(errors)


class BadRequest(Problem):
    """The body is not what its Content-Type says."""

    status, title = HTTPStatus.BAD_REQUEST, "Malformed request"


class Unauthorised(Problem):
    """Whoever calls has not said who it is."""

    status, title = HTTPStatus.UNAUTHORIZED, "Unauthorised"


class Forbidden(Problem):
    """Whoever calls is not who it says."""

    status, title = HTTPStatus.FORBIDDEN, "Forbidden"


class NotFound(Problem):
    """What was asked for does not exist."""

    status, title = HTTPStatus.NOT_FOUND, "Not found"


class Conflict(Problem):
    """What was asked does not fit what is there."""

    status, title = HTTPStatus.CONFLICT, "Conflict"


class TooLarge(Problem):
    """Over a limit."""

    status, title = HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "Too large"


class RangeUnsatisfiable(Problem):
    """A part of a file that it does not have."""

    status, title = HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, "Range not satisfiable"


class Unsupported(Problem):
    """A kind of body that is not served."""

    status, title = HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "Unsupported media type"


class Invalid(Problem):
    """A field, image, array or recipe is wrong."""

    status, title = HTTPStatus.UNPROCESSABLE_ENTITY, "Invalid input"


class Overloaded(Problem):
    """Too much to do."""

    status, title = HTTPStatus.TOO_MANY_REQUESTS, "Overloaded"


class Unavailable(Problem):
    """Not able to serve for the moment."""

    status, title = HTTPStatus.SERVICE_UNAVAILABLE, "Unavailable"


class TimedOut(Problem):
    """Waited too long."""

    status, title = HTTPStatus.GATEWAY_TIMEOUT, "Timed out"


def invalid(where: str, problem: str) -> Invalid:
    """An `Invalid` with one fault."""
    return Invalid(f"{where}: {problem}", [Fault(where=where, problem=problem)])


def answer_with_problems(app: FastAPI) -> None:
    """Make every error of `app` a problem document, those of the framework and of the store included."""
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _validation)
    kinds = (UnknownStream, UnknownSnapshot, UnknownEdge, StreamExists, StoreConflict, Incomplete, QueueFull)
    for kind in (*kinds, StoreUnavailable):
        app.add_exception_handler(kind, _store)
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_exception_handler(Exception, _unexpected)


def document(status: int, title: str, detail: str, errors: Sequence[Fault] = ()) -> ProblemDetails:
    """A problem document; its type is its title as a name."""
    name = title.lower().replace(" ", "-")
    return ProblemDetails(
        type=f"urn:normstream:problem:{name}", title=title, status=status, detail=detail, errors=list(errors)
    )


def respond(problem: HTTPException) -> Response:
    """The response for any HTTP error, ours or the framework's."""
    status = HTTPStatus(problem.status_code)
    title = getattr(problem, "title", status.phrase)
    body = document(status, title, problem.detail, getattr(problem, "errors", ()))
    return Response(body.model_dump_json(), status, dict(problem.headers or {}), MEDIA_TYPE)


async def _http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101  (as registered)
    return respond(error)


async def _validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101  (as registered)
    if isinstance(error.body, bytes):  # FastAPI has parsed any body whose Content-Type is JSON.
        kind = request.headers.get("content-type", "")
        return respond(Unsupported(f"The Content-Type is {kind[:100]!r}; send application/json."))
    if any(item["type"] == "json_invalid" for item in error.errors()):
        return respond(BadRequest("The body is not valid JSON."))
    faults = [_fault(item) for item in error.errors()]
    return respond(Invalid("; ".join(f"{fault.where}: {fault.problem}" for fault in faults), faults))


def _fault(item: dict[str, Any]) -> Fault:
    # The input is named but not echoed whole: it may be an image.
    where = ".".join(str(part) for part in item["loc"])
    # A key is a secret, which goes into no log.
    silent = item["type"] == "missing" or "key" in item["loc"]
    seen = "" if silent else f" (got {item['input']!r:.100})"
    return Fault(where=where, problem=f"{item['msg']}{seen}")


async def _store(_: Request, error: Exception) -> Response:
    problem: Problem
    match error:
        case UnknownStream():
            problem = NotFound(f"{error} Create it with POST /v1/streams.")
        case UnknownSnapshot():
            problem = NotFound(f"{error} GET /v1/streams/ID/snapshots lists those of a stream.")
        case UnknownEdge():
            problem = NotFound(f"{error} Register it with POST /v1/edges.")
        case StreamExists():
            problem = Conflict(f"{error} Choose another id, or delete it first.")
        case StoreConflict():
            problem = Conflict(f"{error} Send the request again.")
        case Incomplete():
            problem = Conflict(f"{error} Delete it, or reset the stream.")
        case QueueFull():
            problem = Overloaded(f"{error} None was taken in. Send them again later.", retry_after_s=10)
        case _:
            problem = Unavailable(f"The store of the streams is away: {error}", retry_after_s=1)
    return respond(problem)


async def _gone(_: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_CLOSED_REQUEST)  # Nobody reads it.


async def _unexpected(_: Request, error: Exception) -> Response:
    detail = f"A defect of the server ({type(error).__name__}); its log says more. No stream was changed."
    body = document(HTTPStatus.INTERNAL_SERVER_ERROR, "Internal error", detail)
    return Response(body.model_dump_json(), body.status, media_type=MEDIA_TYPE)
