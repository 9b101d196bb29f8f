"""Images in any form a caller has them, as the body of one request.

An array of a whole batch, or a list of equally sized arrays, travels as `.npy`. Files travel as they are, in a
multipart body; arrays among them, or arrays of different sizes, join them there as PNG, which is lossless.
"""

from __future__ import annotations

import hashlib
import io
import os
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import httpx
import numpy as np
from numpy.typing import NDArray

from normstream.clients.errors import InvalidArgument

Pixels: TypeAlias = NDArray[np.uint8]
Image: TypeAlias = str | os.PathLike[str] | bytes | Pixels
Images: TypeAlias = Image | Sequence[Image] | NDArray[np.float32]

NPY = "application/x-npy"


@dataclass(frozen=True, slots=True)
class Payload:
    """A request's body and what it is."""

    content_type: str
    body: bytes


def encode(images: Images) -> Payload:
    """Encode one image or many; the same images give the same bytes.

    Args:
        images: A file's path or content, a uint8 array `[H, W, 3]`, a list of those; or a whole batch as one array,
            uint8 `[B, H, W, 3]`, or float32 `[B, 3, H, W]` already preprocessed for the model.

    Raises:
        InvalidArgument: There is no image, a file cannot be read, or an array has another shape or type.
    """
    if isinstance(images, np.ndarray) and images.ndim != 3:
        return _npy(_checked_batch(images))
    items = _items(images)
    arrays = [_checked_picture(item, i) for i, item in enumerate(items) if isinstance(item, np.ndarray)]
    if len(arrays) == len(items) and len({array.shape for array in arrays}) == 1:
        return _npy(np.stack(arrays))
    return multipart(as_files(items))


def one_by_one(images: Images) -> list[Image]:
    """Return each image by itself; they may be one array, uint8 `[B, H, W, 3]`."""
    if isinstance(images, np.ndarray) and images.ndim == 4 and images.dtype == np.uint8:
        return list(_checked_batch(images))
    return _items(images)


def as_files(images: Sequence[Image]) -> list[tuple[str, bytes]]:
    """Return the name and the content of a file of each image.

    Raises:
        InvalidArgument: A file cannot be read, or an array has another shape or type.
    """
    return [_file(item, i) for i, item in enumerate(images)]


def multipart(files: list[tuple[str, bytes]], fields: Mapping[str, str] | None = None) -> Payload:
    """Put files into the field `images` of a multipart body, and texts into others."""
    # A boundary of the content, not of chance: a repeated call must have the very same body.
    boundary = hashlib.sha256(b"".join(content for _, content in files)).hexdigest()[:32]
    content_type = f"multipart/form-data; boundary={boundary}"
    parts = [("images", file) for file in files]
    request = httpx.Request("POST", "http://unused", headers={"Content-Type": content_type}, data=fields, files=parts)
    return Payload(content_type, request.read())


def _items(images: Any) -> list[Any]:
    if isinstance(images, (str, os.PathLike, bytes, np.ndarray)):
        return [images]
    if not isinstance(images, Iterable):
        raise InvalidArgument(f"images is a {type(images).__name__}; give paths, bytes or uint8 arrays")
    items = list(images)
    if not items:
        raise InvalidArgument("images is empty; give at least one image")
    return items


def _checked_batch(array: NDArray[Any]) -> NDArray[Any]:
    raw = array.dtype == np.uint8 and array.ndim == 4 and array.shape[3] == 3
    preprocessed = array.dtype == np.float32 and array.ndim == 4 and array.shape[1] == 3
    if not (raw or preprocessed) or array.size == 0:
        raise InvalidArgument(
            f"images is an array {_described(array)}; give uint8 [B, H, W, 3] with raw images, "
            "or float32 [B, 3, H, W] preprocessed for the model, of at least one image"
        )
    return array


def _checked_picture(array: Pixels, position: int) -> Pixels:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or array.size == 0:
        raise InvalidArgument(
            f"images[{position}] is an array {_described(array)}; one image is uint8 [H, W, 3] in RGB "
            "(preprocessed images go as one float32 array [B, 3, H, W])"
        )
    return array


def _described(array: NDArray[Any]) -> str:
    return f"{array.dtype} {list(array.shape)}"


def _npy(array: NDArray[Any]) -> Payload:
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return Payload(NPY, buffer.getvalue())


def _file(item: Any, position: int) -> tuple[str, bytes]:
    """Return an image's file name and content."""
    if isinstance(item, np.ndarray):
        return f"image-{position}.png", _png(_checked_picture(item, position))
    if isinstance(item, (str, os.PathLike)):
        return Path(item).name, _content(Path(item), position)
    if not isinstance(item, bytes):
        raise InvalidArgument(f"images[{position}] is a {type(item).__name__}; give a path, bytes or a uint8 array")
    if not item:
        raise InvalidArgument(f"images[{position}] is empty; give the bytes of a JPEG, PNG or WebP file")
    return f"image-{position}", item


def _content(path: Path, position: int) -> bytes:
    try:
        content = path.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InvalidArgument(f"images[{position}]: cannot read {path}: {reason}") from error
    if not content:
        raise InvalidArgument(f"images[{position}]: the file {path} is empty")
    return content


def _png(pixels: Pixels) -> bytes:
    """Encode as PNG, for which the standard library is enough."""
    height, width, _ = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits, RGB
    rows = np.zeros((height, 1 + 3 * width), np.uint8)  # each row begins with its filter: 0, none
    rows[:, 1:] = pixels.reshape(height, 3 * width)
    data = zlib.compress(rows.tobytes(), level=1)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
