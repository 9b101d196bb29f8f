"""Whether the process lives, and whether it can serve."""

from fastapi import APIRouter, Response

from normstream.service.dependencies import TheAdmission, TheStreams
from normstream.service.schemas import Health
from normstream.service.storage.records import StoreUnavailable

router = APIRouter(tags=["health"])


@router.get("/healthz")
async def healthz() -> Health:
    """200 while the process lives."""
    return Health(ready=True)


@router.get("/readyz", responses={503: {"model": Health, "description": "It cannot serve."}})
async def readyz(response: Response, streams: TheStreams, admission: TheAdmission) -> Health:
    """200 when the server can serve; 503 with the reason when it cannot."""
    reason = "the server is shutting down" if admission.draining.is_set() else await _store_fault(streams)
    response.status_code = 503 if reason else 200
    return Health(ready=reason is None, reason=reason)


async def _store_fault(streams: TheStreams) -> str | None:
    try:
        await streams.store.check()
    except StoreUnavailable as error:
        return f"the store is away: {error}"
    return None
