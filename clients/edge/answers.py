"""Answers that are read no further than they may be long: what is between an edge and its server may send anything."""

from __future__ import annotations

import httpx

LARGEST_JSON_BYTES = 2**20  # a problem's too
UNPACKED = {"Accept-Encoding": "identity"}  # a header: a few packed bytes may unpack to any number
_OF_THE_WIRE = frozenset({"content-encoding", "content-length", "transfer-encoding"})  # how it came, not what it is


class TooLong(httpx.RequestError):
    """An answer goes on for longer than it may; a kind of failed request, and caught where those are."""


class Packed(httpx.RequestError):
    """An answer came compressed, which it was not to be; caught where failed requests are."""


def read(response: httpx.Response, most_bytes: int) -> httpx.Response:
    """Read the streamed answer to a request that was sent with `UNPACKED`; the one that is returned holds its body.

    Raises:
        TooLong: It has more than `most_bytes`; the rest of it is not read.
        Packed: It came compressed all the same; nothing of it is read.
    """
    if (packed := response.headers.get("Content-Encoding", "identity")) != "identity":
        raise Packed(f"{response.url.path} was answered with {packed[:100]!r} content, which was not asked for")
    body = bytearray()
    for chunk in response.iter_bytes():
        body += chunk
        if len(body) > most_bytes:
            raise TooLong(f"{response.url.path} was answered with more than {most_bytes:,} bytes")
    headers = [(name, value) for name, value in response.headers.multi_items() if name not in _OF_THE_WIRE]
    return httpx.Response(response.status_code, headers=headers, content=bytes(body), request=response.request)
