"""What the methods' losses are functions of."""

from typing import NamedTuple

from torch import Tensor


class Answers(NamedTuple):
    """A network's answers to labelled samples."""

    logits: Tensor  # [B, classes]
    labels: Tensor  # index of each sample's class, [B]


class Replayed(NamedTuple):
    """Its answers to samples from the memory."""

    logits: Tensor  # [B, classes]
    labels: Tensor  # [B]
    stored: Tensor  # logits when the sample was stored, [B, outputs of the memory], filled up with 0
    outputs: Tensor  # how many of them each sample had, [B]
