"""What an edge and its server say to each other.

LinkError
├── Unreachable   no answer, or one that means "not now": try again later
│   ├── Unconnected   not even a connection: nothing was sent
│   └── Full          the server answers, and has no room for more samples at the moment
├── Unknown       the server knows no such edge: register
├── Unwanted      the server will not have this request; others may pass
├── Withheld      the server has no update that it could send, until somebody acts there
└── Unwelcome     the server will not have this edge; no further attempt will help
"""
# ruff: noqa: N818 - the names are those of what happened

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import httpx

from normstream.clients.edge.answers import LARGEST_JSON_BYTES, UNPACKED, read
from normstream.clients.edge.folder import Identity
from normstream.clients.edge.spool import Waiting
from normstream.clients.errors import NormstreamError, api_error
from normstream.clients.retry import retry_after_s

UPDATE = "application/octet-stream"
_LARGEST_UPDATE_BYTES = 64 * 2**20  # 4 million channels' weight, bias, mean and variance in single precision
_EXPORT_S = 300.0  # the first edge of a model waits for its package to be made
_MARGIN_S = 15.0  # how much longer than the server promised to wait an answer may take


class LinkError(NormstreamError):
    """A call that did not succeed."""


class Unreachable(LinkError):
    """There was no answer, or the server cannot serve now."""

    def __init__(self, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Unconnected(Unreachable):
    """There was nobody to send anything to."""


class Full(Unreachable):
    """The server takes no more samples at the moment."""


class Unknown(LinkError):
    """The server knows no such edge."""


class Unwanted(LinkError):
    """The server refused what was sent."""


class Withheld(LinkError):
    """The server answers, and has no update that it could send: such as where it hosts other weights by now."""


class Unwelcome(LinkError):
    """The server refused the edge: a wrong key, an id that another one has, an edge that was deleted."""


@dataclass(frozen=True, slots=True)
class Offer:
    """An update as it came: nothing of it is to be trusted before its signature has been verified."""

    body: bytes
    signature: str


class Link:
    """The connection of an edge to its server; any thread may use it.

    Args:
        server: The server's address.
        timeout_s: How long to wait for a connection and for each part of an answer.
        transport: What carries the requests in place of the network.

    Attributes:
        server: Its address.
        closing: Whether it is being closed, and begins nothing more.
        bytes_up: Bytes of bodies sent.
        bytes_down: Bytes of bodies received.
    """

    def __init__(self, server: str, timeout_s: float = 30.0, transport: httpx.BaseTransport | None = None) -> None:
        self.server = server
        self.bytes_up = 0
        self.bytes_down = 0
        self._timeout_s = timeout_s
        self.closing = False
        self._sockets: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._http = httpx.Client(base_url=server, headers=UNPACKED, timeout=timeout_s, transport=transport)

    @property
    def http(self) -> httpx.Client:
        """The client that fetches packages."""
        return self._http

    def abort(self) -> None:
        """Break off what other threads are waiting for, and begin nothing more."""
        with self._lock:
            self.closing = True
            for each in self._sockets:
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connections; no thread may be using them."""
        self._http.close()

    def register(self, identity: Identity) -> tuple[str, bool]:
        """Make the edge known to the server, which may know it already.

        Returns:
            The name of its model, and whether that has a teacher, which learns from samples.
        """
        try:
            patience = httpx.Timeout(self._timeout_s, read=_EXPORT_S)
            taken = {409: Unwelcome}  # another edge has the id
            response = self._send("POST", "/v1/edges", taken, json=identity.request(), timeout=patience)
        except Unwanted as error:  # what is amiss is at the server, such as a teacher that it does not host yet
            raise Unreachable(f"the server cannot register this edge: {error}") from error
        answer = self._json(response, {200, 201})
        if not isinstance(answer.get("model"), str):
            raise Unreachable("the answer to the registration names no model")
        return str(answer["model"]), answer.get("teacher") is not None

    def upload(self, identity: Identity, samples: Sequence[Waiting], report: Mapping[str, Any]) -> None:
        """Send samples and the edge's report; without samples the report alone."""
        response = self._send(
            "POST",
            f"/v1/edges/{identity.edge}/samples",
            {429: Full},
            # A field without a file name is a part like the files, so that a report alone is multipart too.
            files=[
                ("report", (None, json.dumps(report).encode())),
                *(("images", (sample.id, sample.image)) for sample in samples),
            ],
            headers=_bearer(identity),
        )
        self._json(response, {202})

    def ask(self, identity: Identity, since: str | None, precision: str, wait_s: float) -> Offer | None:
        """Ask for a newer version of the parameters than `since`; None when there is none within `wait_s`."""
        query = {"since": since, "precision": precision, "wait": f"{wait_s:g}"}
        response = self._send(
            "GET",
            f"/v1/edges/{identity.edge}/affine",
            {409: Withheld},
            params={name: value for name, value in query.items() if value is not None},
            headers=_bearer(identity),
            timeout=httpx.Timeout(self._timeout_s, read=wait_s + _MARGIN_S),
            most_bytes=_LARGEST_UPDATE_BYTES,
        )
        if response.status_code in {204, 304}:
            return None
        if response.status_code != 200:
            raise Unreachable(f"an update was answered with {response.status_code}")
        kind = response.headers.get("Content-Type", "")
        # Not such as the page on which one logs in to a hotel's network.
        if kind.partition(";")[0].strip().lower() != UPDATE:
            raise Unreachable(f"an update was answered with {kind[:100]!r}, which is no update")
        return Offer(response.content, response.headers.get("Normstream-Signature", ""))

    def _send(
        self,
        method: str,
        path: str,
        means: Mapping[int, type[LinkError]],
        *,
        most_bytes: int = LARGEST_JSON_BYTES,
        **parts: Any,
    ) -> httpx.Response:
        """Make a call, of whose statuses some have a meaning of their own."""
        if self.closing:
            raise Unreachable("the client is closing")
        try:
            with self._http.stream(method, path, extensions={"trace": self._trace}, **parts) as streamed:
                response = read(streamed, most_bytes if streamed.status_code < 400 else LARGEST_JSON_BYTES)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise Unconnected(str(error) or type(error).__name__) from error
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
            raise Unreachable(str(error) or type(error).__name__) from error
        finally:
            self._forget_closed()
        with self._lock:
            self.bytes_up += int(response.request.headers.get("Content-Length", 0))
            self.bytes_down += len(response.content)
        return _welcome(response, {**_MEANS, **means})

    @staticmethod
    def _json(response: httpx.Response, statuses: set[int]) -> dict[str, Any]:
        """Return a body that is JSON: anything else is of something between the edge and its server."""
        with suppress(ValueError):
            answer = response.json()
            if response.status_code in statuses and isinstance(answer, dict):
                return answer
        raise Unreachable(f"{response.request.url.path} was answered with {response.status_code} and no JSON object")

    def _trace(self, event: str, info: Mapping[str, Any]) -> None:
        if event in {"connection.connect_tcp.complete", "connection.start_tls.complete"}:
            opened = info["return_value"].get_extra_info("socket")
            with self._lock:
                self._sockets.add(opened)
            if self.closing:
                self.abort()

    def _forget_closed(self) -> None:
        with self._lock:
            self._sockets = {each for each in self._sockets if each.fileno() >= 0}


_MEANS: dict[int, type[LinkError]] = {
    **dict.fromkeys((401, 403, 410), Unwelcome),
    **dict.fromkeys((400, 413, 415, 422), Unwanted),
    404: Unknown,
}


def _bearer(identity: Identity) -> dict[str, str]:
    return {"Authorization": f"Bearer {identity.key}"}


def _welcome(response: httpx.Response, means: Mapping[int, type[LinkError]]) -> httpx.Response:
    """Return an answer that is none of the errors, which are what their statuses mean.

    Only problem details are the server's own no. A page of a proxy or of a hotel's network with the same status is
    something that passes.
    """
    if response.status_code < 400:
        return response
    problem = str(api_error(response))
    own = response.headers.get("Content-Type", "").startswith("application/problem+json")
    error = means.get(response.status_code, Unreachable) if own else Unreachable
    raise error(problem, retry_after_s(response)) if issubclass(error, Unreachable) else error(problem)
