"""Images as the memory keeps them and as a network takes them."""

import io
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..preprocessing import Preprocessing

Pixels: TypeAlias = NDArray[np.uint8]  # [B, H, W, 3], cropped to the network's input size
Features: TypeAlias = NDArray[np.float32]  # what the head reads, [B, D]
Examples: TypeAlias = NDArray[Any]  # `Pixels` or `Features`
Encoding: TypeAlias = Literal["png", "jpeg"]

QUALITY = 90  # of JPEG
PADDING = 8  # a crop moves by at most this part of the side, as for CIFAR: 4 of 32


class DamagedImageError(ValueError):
    """Bytes that are no image of the network's size."""


def encode(image: Pixels, encoding: Encoding) -> bytes:
    """One image [H, W, 3] as a file's bytes."""
    file = io.BytesIO()
    options = {"quality": QUALITY} if encoding == "jpeg" else {}
    Image.fromarray(image).save(file, encoding.upper(), **options)
    return file.getvalue()


def decode(files: Sequence[bytes], size: tuple[int, int]) -> Pixels:
    """The inverse of `encode`, for colour images of one size (height, width).

    Raises:
        DamagedImageError: when one is something else; a larger one is refused before its pixels are unpacked.
    """
    return np.stack([_decoded(file, size) for file in files])


def _decoded(file: bytes, size: tuple[int, int]) -> Pixels:
    try:
        with Image.open(io.BytesIO(file), formats=("PNG", "JPEG")) as image:
            if image.mode == "RGB" and (image.height, image.width) == size:
                return np.asarray(image)
            found = f"{image.mode} of {image.width}x{image.height} pixels"
    except (OSError, ValueError, Image.DecompressionBombError, SyntaxError):
        found = "no whole PNG or JPEG"
    raise DamagedImageError(f"the memory holds an image that is none of the network's size: {found}")


def normalise(pixels: Pixels, preprocessing: Preprocessing) -> Tensor:
    """As a network takes them: float32 [B, 3, H, W]."""
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (preprocessing.mean, preprocessing.std))
    return (torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2) / 255 - mean) / std


def jitter(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Each image moved by up to an eighth of its side over black, and half of them mirrored."""
    pad = max(1, min(pixels.shape[1:3]) // PADDING)
    padded = np.pad(pixels, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    height, width = pixels.shape[1:3]
    moved = np.empty_like(pixels)
    for index, (down, right) in enumerate(rng.integers(2 * pad + 1, size=(len(pixels), 2))):
        crop = padded[index, down : down + height, right : right + width]
        moved[index] = crop[:, ::-1] if rng.random() < 0.5 else crop
    return moved
