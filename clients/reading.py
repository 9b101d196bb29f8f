"""How answers are read: JSON to frozen values.

Fields that a value does not have are passed over, so that an older client works with a newer server; what must be there
and is not is an `UnexpectedAnswer`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from datetime import datetime
from typing import Any, TypeAlias, TypeVar

import httpx

from normstream.clients.errors import UnexpectedAnswer

T = TypeVar("T")
Metadata: TypeAlias = Mapping[str, Any]  # of a field: `parse` reads its value, `key` is its name on the wire


def one(kind: type[Any]) -> Metadata:
    """Read an object as a `kind`."""
    return {"parse": lambda item: read(kind, item)}


def optional(kind: type[Any]) -> Metadata:
    """Read an object as a `kind`, and null as None."""
    return _or_none(lambda item: read(kind, item))


def each(kind: type[Any]) -> Metadata:
    """Read a list as a tuple of `kind`."""
    return {"parse": lambda items: tuple(read(kind, item) for item in items)}


def _or_none(parse: Callable[[Any], Any]) -> Metadata:
    return {"parse": lambda value: None if value is None else parse(value)}


TUPLE: Metadata = {"parse": tuple}
OPTIONAL_TUPLE = _or_none(tuple)
TIME: Metadata = {"parse": datetime.fromisoformat}
OPTIONAL_TIME = _or_none(datetime.fromisoformat)


def read(kind: type[T], data: Any) -> T:
    """Make a `kind` of the JSON object `data`."""
    with expecting(kind.__name__):
        return kind(**{name: parse(data[key]) for name, key, parse in _parts(kind) if key in data})


def read_body(kind: type[T]) -> Callable[[httpx.Response], T]:
    """Return the reader of answers whose body is a `kind`."""
    return lambda response: read(kind, json_of(response))


def json_of(response: httpx.Response) -> Any:
    """Return the JSON of an answer's body."""
    with expecting("answer"):
        return response.json()


@contextmanager
def expecting(what: str) -> Iterator[None]:
    """Turn what goes wrong as an answer is read into an `UnexpectedAnswer`."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UnexpectedAnswer(
            f"cannot read the server's {what}: {error}; check that the URL is a Normstream server's, "
            "and that this client is not older than the server"
        ) from error


def _parts(kind: type[Any]) -> Iterator[tuple[str, str, Callable[[Any], Any]]]:
    """Yield each field's name, its key on the wire, and how its value is read."""
    for part in fields(kind):
        yield part.name, part.metadata.get("key", part.name), part.metadata.get("parse", lambda value: value)
