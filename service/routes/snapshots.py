"""Snapshots: keep, list, download, upload, delete. They outlive their streams."""

from fastapi import APIRouter, Request, Response

from normstream.service.dependencies import TheStreams
from normstream.service.errors import Unsupported
from normstream.service.schemas import Snapshot, SnapshotId, SnapshotList, StreamId

router = APIRouter(prefix="/v1", tags=["snapshots"])

BYTES = "application/octet-stream"
_BINARY = {"content": {BYTES: {"schema": {"type": "string", "format": "binary"}}}}


@router.post("/streams/{id}/snapshots", status_code=201)
async def create_snapshot(id: StreamId, streams: TheStreams) -> Snapshot:
    """Keep a copy of a stream's state."""
    return Snapshot.of(await streams.snapshot(id))


@router.get("/streams/{id}/snapshots")
async def list_snapshots(id: StreamId, streams: TheStreams) -> SnapshotList:
    """The snapshots of a stream, newest first; of one that is deleted too."""
    return SnapshotList(snapshots=[Snapshot.of(summary) for summary in await streams.store.snapshots(id)])


@router.get("/snapshots/{sid}", response_class=Response, responses={200: _BINARY})
async def download_snapshot(sid: SnapshotId, streams: TheStreams) -> Response:
    """The state, as a safetensors file."""
    record = await streams.store.snapshot(sid)
    headers = {"Content-Disposition": f'attachment; filename="{sid}.safetensors"'}
    return Response(record.state, media_type=BYTES, headers=headers)


@router.put(
    "/snapshots/{sid}",
    status_code=201,
    responses={200: {"model": Snapshot, "description": "It was there already."}},
    openapi_extra={"requestBody": {"required": True} | _BINARY},
)
async def upload_snapshot(sid: SnapshotId, request: Request, response: Response, streams: TheStreams) -> Snapshot:
    """Keep a state that was downloaded before."""
    kind = request.headers.get("content-type", BYTES).partition(";")[0].strip().lower()
    if kind != BYTES:
        raise Unsupported(f"The Content-Type is {kind[:100]!r}; send {BYTES}.")
    record, made = await streams.upload_snapshot(sid, await request.body())
    response.status_code = 201 if made else 200
    return Snapshot.of(record)


@router.delete("/snapshots/{sid}", status_code=204)
async def delete_snapshot(sid: SnapshotId, streams: TheStreams) -> None:
    """Drop a snapshot."""
    await streams.store.delete_snapshot(sid)
