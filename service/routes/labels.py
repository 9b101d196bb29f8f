"""Labels: what images show, told after their prediction or with the images."""

from typing import Annotated

from fastapi import APIRouter, Header, Query, Request

from normstream.service.connection import while_connected
from normstream.service.deadline import Deadline
from normstream.service.dependencies import TheAdmission, TheLabeller, TheSettings
from normstream.service.label_schemas import Labelling, StreamLabels
from normstream.service.labels import LabelledImage, read_labels
from normstream.service.schemas import StreamId

router = APIRouter(prefix="/v1/streams", tags=["labels"])

_LABELS = {
    "type": "object",
    "required": ["labels"],
    "properties": {"labels": {"type": "array", "minItems": 1, "items": LabelledImage.model_json_schema()}},
    "additionalProperties": False,
}
_FILES = {
    "type": "object",
    "required": ["images", "labels"],
    "properties": {
        "images": {"type": "array", "minItems": 1, "items": {"type": "string", "format": "binary"}},
        "labels": {
            "type": "string",
            "contentMediaType": "application/json",
            "description": "a JSON array with a class for each image: its name, or an object with label, class or both",
        },
    },
}
_BODY = {
    "required": True,
    "content": {
        "application/json": {"schema": _LABELS},
        "multipart/form-data": {"schema": _FILES, "encoding": {"labels": {"contentType": "application/json"}}},
    },
}


@router.post("/{id}/labels", openapi_extra={"requestBody": _BODY})
async def label(
    id: StreamId,
    request: Request,
    labeller: TheLabeller,
    settings: TheSettings,
    admission: TheAdmission,
    learn: Annotated[bool, Query(description="false counts the labels, and leaves what was learnt as it is")] = True,
    idempotency_key: Annotated[
        str | None,
        Header(pattern=r"^[!-~]{1,255}$", description="makes a retry safe: images that come with labels count once"),
    ] = None,
) -> Labelling:
    """Tell what images show: the stream's predictions are scored, and it learns if its recipe has the slot `learn`.

    The body is JSON, each label of a prediction's sample or of an image in base64; or multipart, files in the field
    `images` and as many labels in the field `labels`. All labels are checked before one counts.
    """
    with admission.enter():
        deadline = Deadline(settings.request_timeout_s)
        async with deadline.kept():
            labels = await read_labels(request, settings)
        work = labeller.label(id, labels, learns=learn, key=idempotency_key, deadline=deadline)
        return await while_connected(request, work)


@router.get("/{id}/labels")
async def show_labels(id: StreamId, labeller: TheLabeller) -> StreamLabels:
    """How often a stream was right by the labels that came, the classes it knows, and what it has learnt."""
    return await labeller.show(id)
