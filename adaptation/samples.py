"""Samples that an edge uploads: the input of its network, compressed."""

import math
from dataclasses import dataclass
from io import BytesIO

from PIL import Image

from .preprocessing import Preprocessing

FORMATS = ("JPEG", "WEBP", "PNG")
LARGEST = 2  # times the network's input, in either direction


class SampleError(ValueError):
    """A sample that cannot be learnt from; the message names it."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One uploaded image."""

    id: str
    image: bytes  # JPEG, WebP or PNG of the student's input, cropped and resized
    taken_at: float  # unix time, seconds


def decoded(sample: Sample, student: Preprocessing) -> Image.Image:
    """Its pixels, RGB.

    Raises:
        SampleError: when it is no whole image of the three formats, or larger than a student's input can be.
    """
    if not math.isfinite(sample.taken_at):
        raise SampleError(f"sample {sample.id!r}: taken_at is {sample.taken_at}, expected unix time in seconds")
    _, height, width = student.input_size
    try:
        with Image.open(BytesIO(sample.image), formats=FORMATS) as image:
            if image.width <= LARGEST * width and image.height <= LARGEST * height:  # before its pixels take memory
                return image.convert("RGB")
            seen = image.size
    except Exception as error:  # Each format's decoder has errors of its own.
        raise SampleError(f"sample {sample.id!r} is no whole {', '.join(FORMATS)} image: {error}") from None
    raise SampleError(
        f"sample {sample.id!r} is {seen[0]} x {seen[1]}; the network's input is {width} x {height}, and at most"
        f" {LARGEST} times that is taken"
    )
