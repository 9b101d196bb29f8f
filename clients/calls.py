"""Every call of the REST API that people make.

Nothing here does I/O (`predict` and `label` read the image files they are given). `Client` and `AsyncClient` send these
values.
"""
# ruff: noqa: A002 - the API calls it `id`

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal, TypeAlias
from uuid import uuid4

from normstream.clients.answers import (
    Methods,
    Model,
    Models,
    Prediction,
    Recipes,
    Snapshot,
    SnapshotList,
    Stream,
    StreamPage,
    read_prediction,
    read_values,
)
from normstream.clients.call import JSON, Call, Repeat, delete, get, nothing, path_of
from normstream.clients.edge_answers import Edge, EdgePage
from normstream.clients.errors import InvalidArgument
from normstream.clients.images import NPY, Images, encode
from normstream.clients.label_answers import Labelling, StreamLabels
from normstream.clients.labels import Labels, encode_labels
from normstream.clients.reading import read_body

Recipe: TypeAlias = str | Mapping[str, Any]
Output: TypeAlias = Literal["topk", "probs", "logits"]

BYTES = "application/octet-stream"


def models() -> Call[Models]:
    """List the models."""
    return get(read_body(Models), "models")


def model(name: str) -> Call[Model]:
    """Look at one model."""
    return get(read_body(Model), "models", name)


def recipes() -> Call[Recipes]:
    """List the presets, with the schema of recipes."""
    return get(read_body(Recipes), "recipes")


def methods() -> Call[Methods]:
    """List the members that recipes are made of."""
    return get(read_body(Methods), "methods")


def create_stream(
    id: str | None = None,
    *,
    model: str | None = None,
    recipe: Recipe = "alpha_bn",
    idle_ttl_s: float | None = None,
) -> Call[Stream]:
    """Create a stream. An id made up here, not by the server, makes the call safe to repeat."""
    optional = {"model": model, "idle_ttl_s": idle_ttl_s}
    given = {name: value for name, value in optional.items() if value is not None}
    return _post("/v1/streams", {"id": _made_up() if id is None else id, "recipe": recipe, **given})


def streams(after: str | None = None, limit: int = 100) -> Call[StreamPage]:
    """List the streams that come after an id."""
    return get(read_body(StreamPage), "streams", query=_page(after, limit))


def stream(id: str) -> Call[Stream]:
    """Look at one stream."""
    return get(read_body(Stream), "streams", id)


def delete_stream(id: str) -> Call[None]:
    """Delete a stream."""
    return delete("streams", id)


def predict(
    id: str,
    images: Images,
    *,
    adapt: bool = True,
    top_k: int = 5,
    output: Output = "topk",
    idempotency_key: str | None = None,
) -> Call[Prediction]:
    """Predict images. The idempotency key, made up if need be, makes the call safe to repeat."""
    path = path_of("streams", id, "predict")
    payload = encode(images)
    return Call(
        method="POST",
        path=path,
        query={"adapt": _flag(adapt), "top_k": str(top_k), "output": _checked_output(output)},
        headers={
            "Content-Type": payload.content_type,
            "Accept": JSON if output == "topk" else NPY,
            "Idempotency-Key": _key(idempotency_key),
        },
        body=payload.body,
        parse=read_prediction if output == "topk" else partial(read_values, id),
    )


def label(id: str, labels: Labels, *, learn: bool = True, idempotency_key: str | None = None) -> Call[Labelling]:
    """Say what images show. The idempotency key, made up if need be, makes the call safe to repeat."""
    path = path_of("streams", id, "labels")
    payload = encode_labels(labels)
    return Call(
        method="POST",
        path=path,
        query={"learn": _flag(learn)},
        headers={"Content-Type": payload.content_type, "Idempotency-Key": _key(idempotency_key)},
        body=payload.body,
        parse=read_body(Labelling),
    )


def scores(id: str) -> Call[StreamLabels]:
    """Look at how a stream has done by the labels that came."""
    return get(read_body(StreamLabels), "streams", id, "labels")


def reset(id: str) -> Call[Stream]:
    """Put a stream back to the source state."""
    return Call(method="POST", path=path_of("streams", id, "reset"), parse=read_body(Stream))


def snapshot(id: str) -> Call[Snapshot]:
    """Keep a copy of a stream's state. Done twice it would leave two copies."""
    path = path_of("streams", id, "snapshots")
    return Call(method="POST", path=path, parse=read_body(Snapshot), repeat=Repeat.UNSENT)


def snapshots(id: str) -> Call[tuple[Snapshot, ...]]:
    """List a stream's snapshots, newest first."""
    return get(lambda response: read_body(SnapshotList)(response).snapshots, "streams", id, "snapshots")


def download_snapshot(sid: str) -> Call[bytes]:
    """Download a snapshot."""
    return Call(
        method="GET",
        path=path_of("snapshots", sid),
        headers={"Accept": BYTES},
        parse=lambda response: response.content,
    )


def upload_snapshot(sid: str, content: bytes) -> Call[Snapshot]:
    """Upload a snapshot."""
    return Call(
        method="PUT",
        path=path_of("snapshots", sid),
        headers={"Content-Type": BYTES},
        body=content,
        parse=read_body(Snapshot),
    )


def delete_snapshot(sid: str) -> Call[None]:
    """Delete a snapshot."""
    return delete("snapshots", sid)


def restore(id: str, sid: str) -> Call[Stream]:
    """Put a stream's state back to a snapshot."""
    return _post(path_of("streams", id, "restore"), {"snapshot": sid})


def fork(id: str, new_id: str | None = None) -> Call[Stream]:
    """Copy a stream's state to a new stream."""
    path = path_of("streams", id, "fork")
    if new_id is not None:
        return _post(path, {"id": new_id})
    # Nobody else can have taken an id made up here, so if it exists on a retry, it is this very fork.
    new_id = _made_up()
    return _post(path, {"id": new_id}, if_repeated={409: stream(new_id)})


def events(id: str, last_event_id: str | None = None) -> Call[None]:
    """Open a stream's events, after the one with the given id."""
    headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
    return Call(
        method="GET",
        path=path_of("streams", id, "events"),
        headers=headers | ({} if last_event_id is None else {"Last-Event-ID": last_event_id}),
        parse=nothing,
    )


def edges(after: str | None = None, limit: int = 100) -> Call[EdgePage]:
    """List the edges that come after an id."""
    return get(read_body(EdgePage), "edges", query=_page(after, limit))


def edge(id: str) -> Call[Edge]:
    """Look at one edge."""
    return get(read_body(Edge), "edges", id)


def delete_edge(id: str) -> Call[None]:
    """Forget an edge."""
    return delete("edges", id)


def ready() -> Call[bool]:
    """Ask whether the server can serve. A probe: it is of use only if it answers at once."""
    return Call(method="GET", path="/readyz", parse=lambda response: True, repeat=Repeat.NEVER)


def _post(
    path: str, body: Mapping[str, Any], if_repeated: Mapping[int, Stream | Call[Stream]] | None = None
) -> Call[Stream]:
    return Call(
        method="POST",
        path=path,
        headers={"Content-Type": JSON},
        body=json.dumps(body, allow_nan=False).encode(),
        parse=read_body(Stream),
        if_repeated=if_repeated or {},
    )


def _page(after: str | None, limit: int) -> dict[str, str]:
    return {"limit": str(limit)} | ({} if after is None else {"after": after})


def _flag(value: bool) -> str:
    return "true" if value else "false"


def _made_up() -> str:
    return f"stream-{uuid4().hex[:16]}"


def _key(given: str | None) -> str:
    return uuid4().hex if given is None else _checked_key(given)


def _checked_output(output: str) -> str:
    if output not in {"topk", "probs", "logits"}:
        raise InvalidArgument(f"output is {output!r}; give 'topk', 'probs' or 'logits'")
    return output


def _checked_key(key: str) -> str:
    if not re.fullmatch(r"[\x21-\x7e]{1,255}", key):
        raise InvalidArgument(f"idempotency_key is {key!r}; give 1 to 255 visible ASCII characters")
    return key
