"""Predicted samples as bytes, to learn from when their labels come.

Made beside the thread that runs networks, so by NumPy and Pillow alone: torch would start a team of threads here too.
"""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from ..codec import StateError
from ..hosting import HostedModel
from .learning import Learning
from .pixels import Examples, Features, Pixels, decode, encode


def pack(learning: Learning, hosted: HostedModel, images: Tensor, features: Tensor | None) -> list[bytes]:
    """What is kept of each sample; of none anything, where the recipe keeps nothing.

    Args:
        learning: says what is kept.
        hosted: the model.
        images: as the network took them, [B, 3, H, W].
        features: what the head read of them, [B, D].
    """
    if learning.unlabelled == "images":
        return [encode(image, learning.replay.encoding) for image in pixels_of(hosted, images)]
    if learning.unlabelled == "features":
        assert features is not None
        return [row.tobytes() for row in features.cpu().numpy()]
    return [b""] * len(images)


def unpack(learning: Learning, hosted: HostedModel, data: Sequence[bytes]) -> Examples:
    """Examples to learn from: images uint8 [B, H, W, 3] or features float32 [B, D].

    Raises:
        StateError: when the bytes are not such as `pack` makes for this recipe and model.
    """
    if learning.unlabelled == "images":
        try:
            return decode(data, hosted.preprocessing.input_size[1:])
        except ValueError as error:
            raise StateError(f"what was kept of a sample is damaged: {error}") from None
    width = 0 if hosted.classifier is None else hosted.classifier.in_features
    size = width * np.dtype(np.float32).itemsize if learning.unlabelled == "features" else 0
    if not size or any(len(each) != size for each in data):
        lengths = sorted({len(each) for each in data})
        raise StateError(f"what was kept of samples has {lengths} bytes, expected {size or 'nothing to be kept'}")
    rows = np.stack([np.frombuffer(each, np.float32) for each in data])
    if not np.isfinite(rows).all():
        raise StateError("what was kept of a sample is damaged: its features are not finite")
    return rows


def pixels_of(hosted: HostedModel, images: Tensor) -> Pixels:
    """Images [B, 3, H, W] back from a network's input; exactly, where that was made of uint8."""
    mean, std = (np.asarray(each, np.float32) for each in (hosted.preprocessing.mean, hosted.preprocessing.std))
    unit: Features = np.moveaxis(images.cpu().numpy(), 1, 3) * std + mean
    return np.clip(np.rint(unit * 255), 0, 255).astype(np.uint8)
