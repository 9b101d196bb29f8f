"""From a photograph to a network's input, as the server does it: Pillow's own resampling, in the same steps."""

from __future__ import annotations

import io
import math
import os
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from normstream.clients.edge.errors import BadImage

Pixels: TypeAlias = NDArray[np.uint8]
Source: TypeAlias = Image.Image | Pixels | bytes | str | os.PathLike[str]

MAX_SIDE_RATIO = 100  # A line of pixels would grow to gigabytes when its short side is scaled to the model's.

# What Pillow raises on files that are broken in one way or another; its readers of metadata trip over all kinds.
BROKEN = (
    OSError, SyntaxError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError, AssertionError, EOFError,
    MemoryError, RuntimeError, struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # of Pillow's, those that start no program
_RESAMPLING = {each.name.lower(): each for each in Image.Resampling}


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """How a network wants its images.

    Attributes:
        input_size: Channels, height and width of its input.
        interpolation: Name of the resampling filter.
        mean: Of each channel, of values from 0 to 1.
        std: The same.
        crop_pct: The part of the resized image that the crop keeps, in each direction.
        crop_mode: `center` scales the shorter side to fit and cuts the rest off, `squash` scales each side by itself,
            `border` scales the longer side and pads the shorter with the mean.
    """

    input_size: tuple[int, int, int]
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    crop_pct: float
    crop_mode: str

    def __post_init__(self) -> None:
        if self.interpolation not in _RESAMPLING:
            raise ValueError(f"interpolation is {self.interpolation!r}; known are {', '.join(_RESAMPLING)}")

    @classmethod
    def parse(cls, content: Mapping[str, Any]) -> Self:
        """Read it from a package's manifest.

        Raises:
            ValueError, TypeError, KeyError: It is none.
        """
        channels, height, width = map(int, content["input_size"])
        red, green, blue = map(float, content["mean"])
        red_std, green_std, blue_std = map(float, content["std"])
        return cls(
            input_size=(channels, height, width),
            interpolation=str(content["interpolation"]),
            mean=(red, green, blue),
            std=(red_std, green_std, blue_std),
            crop_pct=float(content["crop_pct"]),
            crop_mode=str(content["crop_mode"]),
        )

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the input."""
        _, height, width = self.input_size
        return width, height


def decode(source: Source) -> Image.Image:
    """Read an image from a file's path or content, an array or a Pillow image: upright, in RGB.

    Args:
        source: A file, or its bytes; uint8 `[H, W, 3]`, or `[H, W]` in grey; or an image, upright by its EXIF data.

    Raises:
        BadImage: It cannot be read, or is hardly more than a line.
    """
    try:
        image = _opened(source)
        image.load()
        upright = ImageOps.exif_transpose(image) if image.getexif() else image  # It copies where it has nothing to do.
        if upright.mode.startswith("I;16") or upright.mode == "I":  # 16 bits: Pillow's own conversion would clip.
            upright = Image.fromarray((np.asarray(upright) >> 8).clip(0, 255).astype(np.uint8))
        rgb = upright if upright.mode == "RGB" else upright.convert("RGB")
    except BROKEN as error:
        raise BadImage(f"the image cannot be read: {str(error)[:200]}") from error
    if min(rgb.size) == 0 or max(rgb.size) > MAX_SIDE_RATIO * min(rgb.size):
        raise BadImage(f"the image is {rgb.width}x{rgb.height}; one side may be {MAX_SIDE_RATIO} times the other")
    return rgb


def crop(image: Image.Image, preprocessing: Preprocessing) -> Pixels:
    """Resize and crop an RGB image to the network's input, uint8 `[H, W, 3]`."""
    scaled = (math.floor(side / preprocessing.crop_pct) for side in preprocessing.size)
    width, height = _resized(image.size, next(scaled), next(scaled), preprocessing.crop_mode)
    if image.size != (width, height):
        image = image.resize((width, height), _RESAMPLING[preprocessing.interpolation])
    border = preprocessing.mean if preprocessing.crop_mode == "border" else (0.0, 0.0, 0.0)
    return np.asarray(_centre(image, preprocessing.size, tuple(round(255 * value) for value in border)))


def normalise(crops: Sequence[Pixels] | Pixels, preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Scale crops, uint8 `[B, H, W, 3]`, to what the network takes, float32 `[B, 3, H, W]`."""
    batch = np.stack(list(crops)).transpose(0, 3, 1, 2).astype(np.float32, order="C")
    batch /= np.float32(255)
    batch -= np.asarray(preprocessing.mean, np.float32)[:, None, None]
    batch /= np.asarray(preprocessing.std, np.float32)[:, None, None]
    return batch


def preprocess(images: Sequence[Source], preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Decode, crop and normalise images of any sizes: float32 `[B, 3, H, W]`.

    Raises:
        BadImage: One of them cannot be read.
    """
    return normalise([crop(decode(image), preprocessing) for image in images], preprocessing)


def _opened(source: Source) -> Image.Image:
    if isinstance(source, Image.Image):
        return source
    if isinstance(source, np.ndarray):
        return Image.fromarray(source)
    return Image.open(io.BytesIO(source) if isinstance(source, bytes) else Path(source), formats=FORMATS)


def _resized(size: tuple[int, int], width: int, height: int, mode: str) -> tuple[int, int]:
    """Return the width and height to which an image of `size` is scaled before the crop.

    The roundings differ between the branches; they are those of the transforms that timm composes on the server.
    """
    if mode == "squash":
        return width, height
    if mode != "border" and width == height:  # the shorter side exactly, the longer rounded down
        short, long = sorted(size)
        grown = int(width * long / short)
        return (width, grown) if size[0] <= size[1] else (grown, width)
    ratios = (size[0] / width, size[1] / height)
    ratio = max(ratios) if mode == "border" else min(ratios)
    return round(size[0] / ratio), round(size[1] / ratio)


def _centre(image: Image.Image, size: tuple[int, int], border: tuple[int, ...]) -> Image.Image:
    """Cut the centre out of an image; where it is too small it is padded first."""
    missing = [max(0, wanted - had) for wanted, had in zip(size, image.size, strict=True)]
    if any(missing):
        before = [each // 2 for each in missing]
        after = [each - first for each, first in zip(missing, before, strict=True)]
        image = ImageOps.expand(image, (*before, *after), fill=border)
    left, top = (round((had - wanted) / 2) for had, wanted in zip(image.size, size, strict=True))
    return image.crop((left, top, left + size[0], top + size[1]))
