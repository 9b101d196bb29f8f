"""What happens to a stream, as server-sent events."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Annotated

from fastapi import APIRouter, Header
from fastapi.responses import StreamingResponse
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event

from normstream.service.admission import Admission
from normstream.service.dependencies import TheAdmission, TheStreams
from normstream.service.errors import invalid
from normstream.service.schemas import StreamId
from normstream.service.storage.records import LoggedEvent, StoreUnavailable

router = APIRouter(prefix="/v1/streams", tags=["events"])

KEEPALIVE_S = 15.0


@router.get(
    "/{id}/events",
    response_class=StreamingResponse,
    responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
)
async def watch_stream(
    id: StreamId,
    streams: TheStreams,
    admission: TheAdmission,
    last_event_id: Annotated[str | None, Header(description="resumes after this event")] = None,
) -> StreamingResponse:
    """What happens to a stream: events `step`, `taught`, `alarm`, `reset`, `restore`, and at last `deleted`."""
    try:
        events = await streams.store.events(id, last_event_id)
    except ValueError as error:
        raise invalid("header.Last-Event-ID", str(error)) from None
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(_lines(events, admission), media_type="text/event-stream", headers=headers)


async def _lines(events: AsyncIterator[LoggedEvent], admission: Admission) -> AsyncIterator[bytes]:
    """The events as lines, with a comment now and then to keep the connection; ends when the server drains."""
    yield KEEPALIVE_COMMENT
    draining = asyncio.ensure_future(admission.draining.wait())
    coming = asyncio.ensure_future(anext(events, None))
    async with aclosing(events):  # type: ignore[type-var]
        try:
            while True:
                await asyncio.wait({coming, draining}, timeout=KEEPALIVE_S, return_when=asyncio.FIRST_COMPLETED)
                if draining.done():
                    return
                if not coming.done():
                    yield KEEPALIVE_COMMENT
                    continue
                event = coming.result()
                if event is None:
                    return
                yield format_sse_event(data_str=event.data.decode(), event=event.type, id=event.id)
                coming = asyncio.ensure_future(anext(events, None))
        except StoreUnavailable:
            return  # The watcher asks again, from the last event it saw, and learns what is wrong.
        finally:
            for task in (draining, coming):
                task.cancel()
            await asyncio.gather(draining, coming, return_exceptions=True)
