"""Predictions whose labels may still come: their ids, and what is kept of them until then."""

import secrets
from collections.abc import Sequence

from normstream.service.engine import Answer
from normstream.service.storage.records import Unlabelled


def new_prediction() -> str:
    """What the ids of a prediction's images begin with: 16 hexadecimal digits."""
    return secrets.token_hex(8)


def sample_id(prediction: str, index: int) -> str:
    """The id of a prediction's image."""
    return f"{prediction}-{index}"


def unlabelled(prediction: str, answer: Answer, names: Sequence[str], kept: Sequence[bytes]) -> list[Unlabelled]:
    """What the store keeps of a prediction: of each image the answer, and perhaps something to learn from.

    Args:
        prediction: whose ids they get.
        answer: to the images.
        names: of the stream's classes.
        kept: of each image, to learn from; empty where nothing is.
    """
    best = answer.probs.argmax(axis=1)
    return [
        Unlabelled(
            id=sample_id(prediction, index),
            answer=names[top],
            confidence=float(answer.probs[index, top]),
            data=kept[index] if kept else b"",
        )
        for index, top in enumerate(best.tolist())
    ]
