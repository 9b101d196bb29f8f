"""Edges: register, look, list, delete; and an edge's own two calls."""

from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from normstream.service.connection import while_connected
from normstream.service.deadline import Deadline
from normstream.service.dependencies import TheAdmission, TheEdges, TheSettings
from normstream.service.edge_schemas import (
    EDGE_ID,
    Accepted,
    Edge,
    EdgeId,
    EdgePage,
    NewEdge,
    RegisteredEdge,
    UploadReport,
)
from normstream.service.errors import Unauthorised
from normstream.service.releases import tag_of
from normstream.service.storage.records import EdgeRecord
from normstream.service.updates import Precision
from normstream.service.uploads import read_upload

router = APIRouter(prefix="/v1/edges", tags=["edges"])

BYTES = "application/octet-stream"
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_UPLOAD = {
    "type": "object",
    "properties": {
        "images": {"type": "array", "items": {"type": "string", "format": "binary"}},
        "report": {
            "type": "string",
            "contentMediaType": "application/json",
            "description": f"a JSON object of {', '.join(UploadReport.model_fields)}",
        },
    },
}
_BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {"schema": _UPLOAD, "encoding": {"report": {"contentType": "application/json"}}}
    },
}

_bearer = HTTPBearer(auto_error=False, description="the edge's key")
_Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]


async def _caller(id: EdgeId, credentials: _Credentials, edges: TheEdges) -> EdgeRecord:
    """The edge that calls, by its key."""
    if credentials is None:
        raise Unauthorised(
            "Send the edge's key: Authorization: Bearer KEY.", headers={"WWW-Authenticate": 'Bearer realm="edges"'}
        )
    return await edges.authenticated(id, credentials.credentials)


TheCaller = Annotated[EdgeRecord, Depends(_caller)]


@router.post(
    "",
    status_code=201,
    responses={200: {"model": RegisteredEdge, "description": "It was there already."}},
)
async def register_edge(body: NewEdge, response: Response, edges: TheEdges, admission: TheAdmission) -> RegisteredEdge:
    """Register an edge; one that is there with the same key, model, recipe and group is found.

    The first edge of a model has its package made, which takes some seconds.
    """
    registering = edges.register(body.id, body.key, body.model, body.recipe, body.group)
    record, stream, made = await admission.until_draining(registering)
    response.status_code = 201 if made else 200
    return RegisteredEdge(
        id=record.id,
        key=record.key,
        model=record.model,
        teacher=body.recipe.teacher,
        stream=record.stream,
        group=record.group,
        recipe=body.recipe.model_dump(mode="json", exclude_none=True),
        tag=tag_of(stream),
        package=f"/v1/models/{record.model}/package",
    )


@router.get("")
async def list_edges(
    edges: TheEdges,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    after: Annotated[str | None, Query(pattern=EDGE_ID, description="the last id of the page before")] = None,
) -> EdgePage:
    """A page of the edges, in order of id."""
    page, following = await edges.page(limit, after)
    return EdgePage(edges=page, next=following)


@router.get("/{id}")
async def show_edge(id: EdgeId, edges: TheEdges) -> Edge:
    """One edge: the version it runs, what came from it, what it tells of itself."""
    return await edges.show(id)


@router.delete("/{id}", status_code=204)
async def delete_edge(id: EdgeId, credentials: _Credentials, edges: TheEdges) -> None:
    """Forget an edge; with the last of its stream the stream goes too. A key is looked at when one is sent."""
    if credentials is not None:
        await edges.authenticated(id, credentials.credentials)
    await edges.delete(id)


@router.post("/{id}/samples", status_code=202, openapi_extra={"requestBody": _BODY})
async def upload_samples(
    edge: TheCaller, request: Request, edges: TheEdges, settings: TheSettings, admission: TheAdmission
) -> Accepted:
    """Samples to learn from, and what the edge tells of itself; it answers before anything is learnt.

    The body is multipart: files (JPEG, PNG, WebP) in the field `images`, each with the sample's id as its file name,
    and JSON in the field `report`. A sample whose id came before counts once.
    """
    with admission.enter():
        async with Deadline(settings.request_timeout_s).kept():
            upload = await read_upload(request, settings)
        return await edges.upload(edge, upload)


@router.get(
    "/{id}/affine",
    response_class=Response,
    responses={
        200: {
            "content": {BYTES: _BINARY},
            "headers": {
                "ETag": {"schema": {"type": "string"}, "description": "the version's tag, in quotes"},
                "Normstream-Signature": {"schema": {"type": "string"}, "description": "hmac-sha256=HEX of the body"},
            },
        },
        204: {"description": "The edge has the newest version."},
        304: {"description": "The version of If-None-Match is the newest."},
    },
)
async def fetch_update(
    edge: TheCaller,
    request: Request,
    edges: TheEdges,
    admission: TheAdmission,
    since: Annotated[str | None, Query(max_length=128, description="the tag of the version that the edge has")] = None,
    precision: Annotated[Precision, Query(description="of what is sent")] = Precision.FLOAT16,
    wait: Annotated[
        float, Query(ge=0, le=60, allow_inf_nan=False, description="seconds to wait for a newer version")
    ] = 0,
    if_none_match: Annotated[str | None, Header(max_length=200, description="a tag, in quotes")] = None,
) -> Response:
    """The newest version of the edge's parameters, whole or as the difference from the one it has."""
    known = since if since is not None else _unquoted(if_none_match)
    update = await admission.until_draining(while_connected(request, edges.update(edge, known, precision, wait)))
    if update is None:
        if since is not None:
            return Response(status_code=204)
        return Response(status_code=304, headers={"ETag": f'"{known}"'})
    headers = {"ETag": f'"{update.tag}"', "Normstream-Signature": update.signature, "Cache-Control": "no-store"}
    return Response(update.body, media_type=BYTES, headers=headers)


def _unquoted(etag: str | None) -> str | None:
    return etag.removeprefix("W/").strip('"') if etag else None
