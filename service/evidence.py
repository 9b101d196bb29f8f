"""What there is of a labelled image: the stream's answer to score, and something to learn from."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from normstream.adaptation import HostedModel, Learning, pixels_of, unpack
from normstream.service.engine import Answer
from normstream.service.errors import invalid
from normstream.service.label_checks import NamedImage
from normstream.service.scores import Judged
from normstream.service.storage.records import Unlabelled


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """What there is of a labelled image: what the stream answered, and something to learn from, or nothing."""

    judged: Judged
    kept: bytes = field(default=b"", repr=False)  # packed when it was predicted
    image: Tensor | None = field(default=None, repr=False)  # that came along, as the model takes it, [C, H, W]
    features: NDArray[np.float32] | None = field(default=None, repr=False)  # that the head read of it, [D]

    @property
    def is_learnable(self) -> bool:
        """Whether there is something to learn from."""
        return bool(self.kept) or self.image is not None


def of_prediction(image: NamedImage, prediction: Unlabelled) -> Evidence:
    """Of an image that was predicted before."""
    return Evidence(Judged(image.name, prediction.answer, prediction.confidence), prediction.data)


def of_image(image: NamedImage, answer: Answer | None, row: int, names: Sequence[str]) -> Evidence:
    """Of an image that came with its label.

    Args:
        image: with its class.
        answer: to all images that came; None where the stream had none.
        row: the image's in the answer.
        names: of the stream's classes.
    """
    if answer is None:
        return Evidence(Judged(image.name), image=image.image)
    best = int(answer.probs[row].argmax())
    judged = Judged(image.name, names[best], float(answer.probs[row, best]))
    return Evidence(
        judged, image=image.image, features=None if answer.features is None else answer.features[row].numpy()
    )


def examples(learning: Learning, hosted: HostedModel, evidence: Iterable[Evidence]) -> NDArray[Any]:
    """What a lesson learns from, of learnable images: uint8 [B, H, W, 3], or float32 [B, D] where features are kept.

    Raises:
        StateError: when what was kept of one is damaged.
        Invalid: when there are features of some alone, for the stream has no answer to the images that came along.
    """
    given = [_example(learning, hosted, each) for each in evidence]
    if len({each.ndim for each in given}) > 1:
        raise invalid(
            "labels",
            "of the samples features were kept, and the stream reads none of the images as it is now; send samples"
            " and images in two requests",
        )
    return np.stack(given)


def _example(learning: Learning, hosted: HostedModel, evidence: Evidence) -> NDArray[Any]:
    if evidence.image is None:
        example: NDArray[Any] = unpack(learning, hosted, [evidence.kept])[0]
    elif learning.unlabelled == "features" and evidence.features is not None:
        example = evidence.features  # So that images and predictions can be learnt from together.
    else:
        example = pixels_of(hosted, evidence.image.unsqueeze(0))[0]
    return example
