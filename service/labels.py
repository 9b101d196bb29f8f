"""From the body of a labels request to what its images show."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter, ValidationError, model_validator
from starlette.datastructures import UploadFile
from starlette.requests import Request

from normstream.service.errors import BadRequest, Fault, Invalid, TooLarge, Unsupported, invalid
from normstream.service.forms import read_form
from normstream.service.images import from_base64
from normstream.service.schemas import Body
from normstream.service.settings import Settings

NAME_LENGTH = 128
SAMPLE = r"^[0-9a-f]{16}-[0-9]{1,6}$"


def _name(text: str) -> str:
    text = unicodedata.normalize("NFC", text).strip()  # "é" may be one character or two, by who typed it.
    if not 1 <= len(text) <= NAME_LENGTH or not text.isprintable():
        raise ValueError(f"a class's name has 1 to {NAME_LENGTH} printable characters")
    return text


ClassName = Annotated[
    str,
    AfterValidator(_name),
    Field(description=f"the class's name, 1 to {NAME_LENGTH} printable characters; spaces around it do not count"),
]


class ShownClass(Body):
    """What an image shows: a class by its name, its number, or both."""

    label: ClassName | None = None
    index: Annotated[int, Field(strict=True, ge=0)] | None = Field(
        None, alias="class", description="number of the class, as predictions tell it"
    )

    @model_validator(mode="after")
    def _said(self) -> Self:
        if self.label is None and self.index is None:
            raise ValueError("give label, class or both")
        return self


class LabelledImage(ShownClass):
    """What an image shows, and which image: one that was predicted, or one that comes along."""

    sample: Annotated[str, Field(pattern=SAMPLE)] | None = Field(None, description="id of the image's prediction")
    image: str | None = Field(None, description="a file (JPEG, PNG, WebP), in base64")

    @model_validator(mode="after")
    def _shown(self) -> Self:
        if (self.sample is None) == (self.image is None):
            raise ValueError("give either sample or image")
        return self


class LabelsBody(Body):
    """Labels as JSON."""

    labels: list[LabelledImage]


def _by_name(value: object) -> object:
    return {"label": value} if isinstance(value, str) else value


_OF_FILES: TypeAdapter[list[ShownClass]] = TypeAdapter(list[Annotated[ShownClass, BeforeValidator(_by_name)]])


@dataclass(frozen=True, slots=True)
class Label:
    """What one image shows; of `sample` and `file` there is one, of `name` and `index` one at least."""

    place: str  # in the request, such as labels.3
    name: str | None
    index: int | None
    sample: str | None = None
    file: bytes | None = field(default=None, repr=False)
    file_place: str = ""


async def read_labels(request: Request, settings: Settings) -> list[Label]:
    """The labels of a request; their images are still undecoded.

    Raises:
        Problem: when the body is no such request, or over a limit.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    match kind:
        case "multipart/form-data":
            labels = await _from_form(request, settings.max_images)
        case "application/json":
            labels = _from_json(await request.body())
        case _:
            raise Unsupported(f"The Content-Type is {kind[:100]!r}; send application/json or multipart/form-data.")
    if not labels:
        raise invalid("labels", "there is no label; send at least one")
    if len(labels) > settings.max_images:
        raise TooLarge(f"The request has {len(labels)} labels; the limit is {settings.max_images}.")
    return labels


def _from_json(body: bytes) -> list[Label]:
    given = _parsed(TypeAdapter(LabelsBody), body, "body").labels
    return [
        Label(
            place=f"labels.{number}",
            name=each.label,
            index=each.index,
            sample=each.sample,
            file=None if each.image is None else from_base64(each.image, f"labels.{number}.image"),
            file_place=f"labels.{number}.image",
        )
        for number, each in enumerate(given)
    ]


async def _from_form(request: Request, max_images: int) -> list[Label]:
    form = await read_form(request, max_files=max_images, max_fields=1)
    try:
        files: list[bytes] = []
        text: bytes | str | None = None
        for name, part in form.multi_items():
            if name == "labels" and text is not None:
                raise invalid("labels", "the field is there twice; send it once")
            if name == "labels":
                text = await part.read() if isinstance(part, UploadFile) else part
            elif name == "images" and isinstance(part, UploadFile):
                files.append(await part.read())
            else:
                raise invalid("body", f"unknown field {name!r:.100}; send files in 'images', and JSON in 'labels'")
    finally:
        await form.close()
    if text is None:
        raise invalid("labels", "the field is missing; send a JSON array with a label for each image")
    shown = _parsed(_OF_FILES, text, "labels")
    if len(shown) != len(files):
        raise invalid("labels", f"there are {len(shown)} labels for {len(files)} images; send one for each")
    return [
        Label(f"labels.{number}", each.label, each.index, file=file, file_place=f"images.{number}")
        for number, (each, file) in enumerate(zip(shown, files, strict=True))
    ]


def _parsed(kind: TypeAdapter[Any], text: bytes | str, where: str) -> Any:
    try:
        return kind.validate_json(text)
    except ValidationError as error:
        items = error.errors(include_url=False)
        if items[0]["type"] == "json_invalid":
            raise BadRequest(f"The {where} is not valid JSON: {items[0]['msg']}") from None
        faults = [_fault(where, item) for item in items[:20]]
        raise Invalid("; ".join(f"{fault.where}: {fault.problem}" for fault in faults), faults) from None


def _fault(where: str, item: Any) -> Fault:
    place: Sequence[str] = [where, *map(str, item["loc"])]
    # What is no text or number of its own may be an image, or a whole request.
    seen = f" (got {item['input']!r:.100})" if isinstance(item["input"], str | int | float | None) else ""
    return Fault(where=".".join(place), problem=f"{item['msg'].removeprefix('Value error, ')}{seen}")
