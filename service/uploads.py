"""What an edge sends: samples to learn from, and what it tells of itself.

A sample is let in only when it decodes whole: what is in the queue can be learnt from.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.requests import Request

from normstream.adaptation import Preprocessing
from normstream.service.edge_schemas import UploadReport
from normstream.service.errors import Fault, Invalid, TooLarge, Unsupported, invalid
from normstream.service.forms import read_form
from normstream.service.images import opened, upright
from normstream.service.schemas import ID
from normstream.service.settings import Settings

MAX_IMAGE_BYTES = 2**20
MAX_SIDES = 2  # times those of the model's input, which a sample is a crop of


@dataclass(frozen=True, slots=True)
class Upload:
    """The samples of one request, undecoded, and the report that came with them."""

    samples: tuple[tuple[str, bytes], ...] = field(repr=False)
    report: UploadReport | None

    @property
    def size(self) -> int:
        """Bytes of the images."""
        return sum(len(image) for _, image in self.samples)


async def read_upload(request: Request, settings: Settings) -> Upload:
    """Read an upload's body.

    Raises:
        Problem: when it is no such body, or over a limit.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise Unsupported(f"The Content-Type is {kind[:100]!r}; send multipart/form-data.")
    form = await read_form(request, max_files=settings.max_images, max_fields=1)
    try:
        samples: list[tuple[str, bytes]] = []
        report = None
        for name, part in form.multi_items():
            if name == "report":
                report = _report(await part.read() if isinstance(part, UploadFile) else part)
            elif name == "images" and isinstance(part, UploadFile):
                samples.append(await _sample(part, len(samples)))
            else:
                raise invalid("body", f"unknown field {name!r:.100}; send files in 'images', and JSON in 'report'")
    finally:
        await form.close()
    if len(samples) > settings.max_images:
        raise TooLarge(f"The request has {len(samples)} images; the limit is {settings.max_images}.")
    return Upload(tuple(samples), report)


async def _sample(part: UploadFile, index: int) -> tuple[str, bytes]:
    sample_id = part.filename or ""
    if not re.fullmatch(ID, sample_id):
        raise invalid(
            f"images.{index}",
            f"the file name {sample_id[:100]!r} is no id of a sample: 1 to 128 letters, digits, '.', '_' or '-',"
            " not beginning with a dot",
        )
    if (part.size or 0) > MAX_IMAGE_BYTES:
        raise TooLarge(
            f"images.{index} ({sample_id}) has {part.size} bytes; the limit is {MAX_IMAGE_BYTES}."
            " Send the crop that the model takes, compressed."
        )
    return sample_id, await part.read()


def _report(text: bytes | str) -> UploadReport:
    try:
        return UploadReport.model_validate_json(text)
    except ValidationError as error:
        faults = [
            Fault(where=".".join(["body.report", *map(str, item["loc"])]), problem=item["msg"])
            for item in error.errors(include_url=False, include_input=False)[:20]
        ]
        raise Invalid("; ".join(f"{fault.where}: {fault.problem}" for fault in faults), faults) from None


def check(samples: Sequence[tuple[str, bytes]], preprocessing: Preprocessing) -> None:
    """Decode each image once, whole. Takes its time; meant for a worker thread.

    Raises:
        Problem: naming index and id of an image that cannot be learnt from.
    """
    _, height, width = preprocessing.input_size
    for index, (sample_id, data) in enumerate(samples):
        try:
            image = opened(data, f"images.{index}")
            if image.width > MAX_SIDES * width or image.height > MAX_SIDES * height:
                raise TooLarge(
                    f"images.{index} is {image.width}x{image.height}; the model takes {width}x{height}, and at most"
                    f" {MAX_SIDES} times that is taken. Send the crop that the model takes."
                )
            upright(image, f"images.{index}")
        except (Invalid, TooLarge) as problem:
            problem.detail = problem.detail.replace(f"images.{index}", f"images.{index} ({sample_id})", 1)
            raise
