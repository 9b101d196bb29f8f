"""Images in, predictions out, one adaptation step."""

from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response

from normstream.service.connection import while_connected
from normstream.service.deadline import Deadline
from normstream.service.dependencies import TheAdmission, ThePredictor, TheSettings
from normstream.service.images import NPY, ImagesBody, read_images
from normstream.service.predictions import Asked, Output, Prediction
from normstream.service.schemas import StreamId

router = APIRouter(prefix="/v1/streams", tags=["predict"])

_BINARY = {"schema": {"type": "string", "format": "binary"}}
_FILES = {
    "type": "object",
    "required": ["images"],
    "properties": {"images": {"type": "array", "minItems": 1, "items": {"type": "string", "format": "binary"}}},
}
_BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {"schema": _FILES},
        NPY: _BINARY,
        "application/json": {"schema": ImagesBody.model_json_schema()},
    },
}


@router.post(
    "/{id}/predict",
    response_class=Response,
    responses={200: {"model": Prediction, "content": {NPY: _BINARY}}},
    openapi_extra={"requestBody": _BODY},
)
async def predict(
    id: StreamId,
    request: Request,
    predictor: ThePredictor,
    settings: TheSettings,
    admission: TheAdmission,
    adapt: Annotated[bool, Query(description="false predicts with the state and leaves it as it is")] = True,
    output: Annotated[Output, Query(description="what is told of each image")] = Output.TOPK,
    top_k: Annotated[int, Query(ge=1, le=100)] = 5,
    idempotency_key: Annotated[
        str | None, Header(pattern=r"^[!-~]{1,255}$", description="makes a retry safe: the same request adapts once")
    ] = None,
) -> Response:
    """Predict the classes of images, and take one adaptation step with them.

    The body is multipart files in the field `images`, a NumPy array (`application/x-npy`: uint8 [B, H, W, 3] raw images
    or float32 [B, 3, H, W] preprocessed ones), or JSON with base64. With `Accept: application/x-npy` the array
    alone is the answer.
    """
    with admission.enter():
        deadline = Deadline(settings.request_timeout_s)
        async with deadline.kept():  # or a few slow senders would take all places inside
            images = await read_images(request, settings)
        asked = Asked(adapt, output, top_k, npy=NPY in request.headers.get("accept", ""))
        predicted = await while_connected(request, predictor.predict(id, images, asked, idempotency_key, deadline))
    return Response(predicted.body, headers=predicted.headers)
