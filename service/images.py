"""From the body of a predict request to what a model takes.

Everything is checked before it meets the images of other streams: a bad image is refused with its index, and a
decompression bomb before it is decoded.
"""

import base64
import binascii
import hashlib
import io
import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import UploadFile
from starlette.requests import Request
from torch import Tensor

from normstream.adaptation import Preprocessing
from normstream.service.errors import BadRequest, Invalid, TooLarge, Unsupported, invalid
from normstream.service.forms import read_form
from normstream.service.settings import Settings

NPY = "application/x-npy"
FORMATS = ("JPEG", "PNG", "WEBP")
MAX_SIDE_RATIO = 100  # A line of pixels would grow to gigabytes when its short side is scaled to the model's.

# What Pillow raises on files that are broken in one way or another; its readers of metadata trip over all kinds.
_BROKEN = (
    OSError, SyntaxError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError, AssertionError, EOFError,
    RuntimeError, struct.error, zlib.error,
)  # fmt: skip


class ImagesBody(BaseModel):
    """Images as JSON."""

    model_config = ConfigDict(extra="forbid")

    images: Annotated[list[str], Field(min_length=1, description="files (JPEG, PNG, WebP), in base64")]


@dataclass(frozen=True, slots=True, eq=False)
class Images:
    """The images of one request: files, or one array.

    Attributes:
        files: as they came.
        array: [B, ...].
        places: what a problem calls the files; images.0 and so on where nothing is said.
    """

    files: tuple[bytes, ...] = ()
    array: NDArray[np.uint8] | NDArray[np.float32] | None = None
    places: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.files) if self.array is None else len(self.array)

    @property
    def digest(self) -> str:
        """Equal for equal images, however they were packed."""
        digest = hashlib.sha256()
        for item in self.files:
            digest.update(hashlib.sha256(item).digest())
        if self.array is not None:
            digest.update(f"{self.array.dtype}{self.array.shape}".encode())
            digest.update(self.array.data)
        return digest.hexdigest()


async def read_images(request: Request, settings: Settings) -> Images:
    """The images of a predict request, still undecoded.

    Raises:
        Problem: when the body is no such request, or over a limit.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    match kind:
        case "multipart/form-data":
            images = Images(files=await _from_form(request, settings.max_images))
        case "application/json":
            images = Images(files=_from_json(await request.body()))
        case _ if kind == NPY:
            images = Images(array=_from_npy(await request.body()))
        case _:
            raise Unsupported(
                f"The Content-Type is {kind[:100]!r}; send multipart/form-data, {NPY} or application/json."
            )
    if len(images) == 0:
        raise invalid("images", "there is no image; send at least one")
    if len(images) > settings.max_images:
        raise TooLarge(f"The request has {len(images)} images; the limit is {settings.max_images}.")
    return images


async def _from_form(request: Request, max_images: int) -> tuple[bytes, ...]:
    form = await read_form(request, max_files=max_images)
    try:
        files = [(name, part) for name, part in form.multi_items() if isinstance(part, UploadFile)]
        if unknown := sorted({name for name, _ in files} - {"images"}):
            raise invalid("body", f"unknown field {unknown[0]!r:.100}; send files in the field 'images'")
        return tuple([await part.read() for _, part in files])
    finally:
        await form.close()


def _from_json(body: bytes) -> tuple[bytes, ...]:
    try:
        texts = ImagesBody.model_validate_json(body).images
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if first["type"] == "json_invalid":
            raise BadRequest(f"The body is not valid JSON: {first['msg']}") from None
        where = ".".join(["body", *map(str, first["loc"])])
        raise invalid(where, f'{first["msg"]}; expected {{"images": ["<base64 of a file>", ...]}}') from None
    return tuple(from_base64(text, f"images.{index}") for index, text in enumerate(texts))


def from_base64(text: str, where: str) -> bytes:
    """The bytes of a file.

    Raises:
        Problem: naming where it is in the request.
    """
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise invalid(where, f"not base64 ({error})") from None


def _from_npy(body: bytes) -> NDArray[np.uint8] | NDArray[np.float32]:
    try:
        array = np.lib.format.read_array(io.BytesIO(body), allow_pickle=False)
    except Exception as error:
        # NumPy reads the header with Python's own parser and tokenizer, which fail in many ways.
        raise invalid("body", f"not a NumPy array file, or cut short ({str(error)[:200]})") from None
    if array.dtype == np.uint8 and array.ndim == 4 and array.shape[3] == 3 and 0 not in array.shape[1:]:
        return np.ascontiguousarray(array)
    if array.dtype == np.float32 and array.ndim == 4 and array.shape[1] == 3:
        return np.ascontiguousarray(array)
    raise invalid(
        "body",
        f"the array is {array.dtype} {list(array.shape)}; send uint8 [B, H, W, 3] raw images,"
        " or float32 [B, 3, H, W] preprocessed ones",
    )


def prepare(images: Images, preprocessing: Preprocessing, max_pixels: int) -> Tensor:
    """Decode and preprocess: float32 [B, C, H, W]. Takes its time; meant for a worker thread.

    Raises:
        Problem: naming the index of the image.
    """
    if images.array is None:
        places = images.places or tuple(f"images.{index}" for index in range(len(images)))
        return _batch(_decoded(images.files, places, max_pixels), preprocessing)
    if images.array.dtype == np.float32:
        return _checked_floats(images.array, preprocessing.input_size)
    height, width = images.array.shape[1:3]
    _check_size("images.0", width, height, max_pixels // len(images), max_pixels)
    return _batch(map(Image.fromarray, images.array), preprocessing)


def _batch(images: Iterable[Image.Image], preprocessing: Preprocessing) -> Tensor:
    arrays = np.stack([preprocessing.array(image) for image in images])
    return torch.from_numpy(arrays).permute(0, 3, 1, 2)  # In memory already channels-last.


def _checked_floats(array: NDArray[np.generic], input_size: Sequence[int]) -> Tensor:
    if array.shape[1:] != tuple(input_size):
        raise invalid("body", f"the array is float32 {list(array.shape)}; the model takes {['B', *input_size]}")
    finite = np.isfinite(array).all(axis=(1, 2, 3))
    if not finite.all():
        raise invalid(f"images.{int(finite.argmin())}", "the array holds NaN or infinity; send finite values")
    return torch.from_numpy(array)


def _decoded(files: Sequence[bytes], places: Sequence[str], max_pixels: int) -> list[Image.Image]:
    left, images = max_pixels, []
    for data, where in zip(files, places, strict=True):
        image = opened(data, where)
        _check_size(where, *image.size, left, max_pixels)
        left -= image.width * image.height
        images.append(image)
    return [upright(image, where) for image, where in zip(images, places, strict=True)]


def opened(data: bytes, where: str) -> Image.Image:
    """The image with only its header read.

    Raises:
        Problem: naming where it is in the request.
    """
    if not data:
        raise invalid(where, "the file is empty")
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise TooLarge(f"{where}: {error}") from None
    except _BROKEN:
        known = ", ".join(FORMATS)
        raise invalid(where, f"not a {known} file, or broken (begins with {data[:8]!r})") from None


def _check_size(where: str, width: int, height: int, left: int, max_pixels: int) -> None:
    if width * height > left:
        raise TooLarge(
            f"{where} is {width}x{height}: with it the request has over {max_pixels} pixels."
            " Send fewer or smaller images."
        )
    if max(width, height) > MAX_SIDE_RATIO * min(width, height):
        raise invalid(where, f"it is {width}x{height}; one side may be {MAX_SIDE_RATIO} times the other")


def upright(image: Image.Image, where: str) -> Image.Image:
    """The pixels, upright by their EXIF orientation, in RGB.

    Raises:
        Problem: naming where it is in the request.
    """
    try:
        image.load()
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I;16") or upright.mode == "I":  # 16 bits: Pillow's own conversion would clip.
            upright = Image.fromarray((np.asarray(upright) >> 8).clip(0, 255).astype(np.uint8))
        return upright.convert("RGB")
    except _BROKEN as error:
        raise invalid(where, f"the file is broken or cut short ({str(error)[:100]})") from None


def refuse_overflow(index: int) -> Invalid:
    """The problem of an image whose values are finite, but too large for the network."""
    return invalid(f"images.{index}", "its values overflow in the network; send values in the preprocessing's range")
