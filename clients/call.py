"""One call of the REST API as a value: what to send, when it may be sent again, and how to read the answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Generic, TypeAlias, TypeVar
from urllib.parse import quote

import httpx

from normstream.clients.errors import ConnectionFailed, InvalidArgument, NormstreamError, api_error

T = TypeVar("T")
Outcome: TypeAlias = httpx.Response | httpx.RequestError

JSON = "application/json"


class Repeat(Enum):
    """When a call that failed may be sent again."""

    ALWAYS = auto()  # done twice it is as done once
    UNSENT = auto()  # only if it cannot have reached the server
    NEVER = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Call(Generic[T]):
    """One call, whose answer is a `T`.

    Attributes:
        method: The HTTP method.
        path: The path, with its parts percent-encoded.
        parse: Reads a successful answer.
        query: The query's parameters.
        headers: The headers beyond the client's own.
        body: The body.
        repeat: When it may be sent again.
        if_repeated: What an error status means when the call was sent before: that an earlier attempt had got
            through, and only its answer was lost. Gives that answer, or the call that finds it.
    """

    method: str
    path: str
    parse: Callable[[httpx.Response], T]
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    repeat: Repeat = Repeat.ALWAYS
    if_repeated: Mapping[int, T | Call[T]] = field(default_factory=dict)


def settle(call: Call[T], outcome: Outcome, *, repeated: bool) -> T | Call[T]:
    """Return what a call came to, or the call that finds it.

    Raises:
        NormstreamError: It came to nothing.
    """
    if isinstance(outcome, httpx.Response) and outcome.is_success:
        return call.parse(outcome)
    if isinstance(outcome, httpx.Response) and repeated and outcome.status_code in call.if_repeated:
        return call.if_repeated[outcome.status_code]
    raise failure(outcome)


def failure(outcome: Outcome) -> NormstreamError:
    """Return the error that an unsuccessful outcome stands for."""
    if isinstance(outcome, httpx.Response):
        return api_error(outcome)
    url = outcome.request.url.copy_with(userinfo=b"")  # a password has no place in a log
    reason = str(outcome) or type(outcome).__name__
    return ConnectionFailed(f"no answer to {outcome.request.method} {url}: {reason}; is the server running?")


def get(parse: Callable[[httpx.Response], T], *parts: str, query: Mapping[str, str] | None = None) -> Call[T]:
    """Look at what is at a path, given in its parts."""
    return Call(method="GET", path=path_of(*parts), query=query or {}, parse=parse)


def delete(*parts: str) -> Call[None]:
    """Delete what is at a path, given in its parts."""
    return Call(method="DELETE", path=path_of(*parts), parse=nothing, if_repeated={404: None})


def path_of(*parts: str) -> str:
    """Return the path of these parts, each percent-encoded."""
    for part in parts:
        if part in {"", ".", ".."}:
            raise InvalidArgument(f"{part!r} cannot name a model, stream, snapshot or edge; give its name or id")
    return "/".join(["/v1", *(quote(part, safe="") for part in parts)])


def nothing(response: httpx.Response) -> None:
    """Read an answer that says all by its status."""
    del response  # Unused.
