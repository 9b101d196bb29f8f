"""Streams: make, look, list, reset, restore, fork, delete."""

from typing import Annotated

from fastapi import APIRouter, Query, Response

from normstream.service.dependencies import TheStreams
from normstream.service.schemas import ID, Fork, NewStream, Restore, Stream, StreamId, StreamPage

router = APIRouter(prefix="/v1/streams", tags=["streams"])


@router.post("", status_code=201, responses={200: {"model": Stream, "description": "It was there already."}})
async def create_stream(body: NewStream, response: Response, streams: TheStreams) -> Stream:
    """Make a stream; one that is there with the same model and recipe is found."""
    streams.admit(body.recipe)
    record, made = await streams.create(body.id, body.model, body.recipe, body.idle_ttl_s)
    response.status_code = 201 if made else 200
    return Stream.of(record)


@router.get("")
async def list_streams(
    streams: TheStreams,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    after: Annotated[str | None, Query(pattern=ID, description="the last id of the page before")] = None,
) -> StreamPage:
    """A page of the streams, in order of id."""
    page, following = await streams.store.streams(limit, after)
    return StreamPage(streams=[Stream.of(summary) for summary in page], next=following)


@router.get("/{id}")
async def show_stream(id: StreamId, streams: TheStreams) -> Stream:
    """One stream. Looking does not count as use."""
    return Stream.of(await streams.store.peek(id))


@router.delete("/{id}", status_code=204)
async def delete_stream(id: StreamId, streams: TheStreams) -> None:
    """Forget a stream; its snapshots stay."""
    await streams.delete(id)


@router.post("/{id}/reset")
async def reset_stream(id: StreamId, streams: TheStreams) -> Stream:
    """Back to the source state."""
    return Stream.of(await streams.reset(id))


@router.post("/{id}/restore")
async def restore_stream(id: StreamId, body: Restore, streams: TheStreams) -> Stream:
    """Back to a snapshot of the same model and recipe."""
    return Stream.of(await streams.restore(id, body.snapshot))


@router.post("/{id}/fork", status_code=201)
async def fork_stream(id: StreamId, streams: TheStreams, body: Fork | None = None) -> Stream:
    """Another stream that begins with a copy of this one's state."""
    return Stream.of(await streams.fork(id, body.id if body else None))
