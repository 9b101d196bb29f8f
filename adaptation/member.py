"""What the members of a recipe are: frozen hyper-parameters and pure functions of tensors.

A new member is one new file in `adaptation/norm/`, `adaptation/update/` or `adaptation/output/`, with one subclass of
the slot's base; `adaptation.recipe` finds it.
"""

from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from .moments import Batch, Moments

if TYPE_CHECKING:
    from .hosting import HostedModel

Tensors = dict[str, Tensor]


class Frozen(BaseModel):
    """A value: it compares, hashes, refuses unknown fields and never changes."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Need(StrEnum):
    """What a member asks of a model."""

    BATCH_NORM = "batch normalisation"
    SAMPLE_NORM = "layer or group normalisation"
    NORM = "normalisation layers"
    CLASSIFIER = "a linear classifier"
    SOURCE_MOMENTS = "calibrated moments"
    FISHER = "calibrated Fisher information"
    SOURCE_FEATURES = "calibrated features"


class Member(Frozen):
    """One method in one slot. The first paragraph of its docstring says what it does and cites its source."""

    name: str
    needs: ClassVar[frozenset[Need]] = frozenset()
    """What the model must have; a model without it is refused with the reason."""
    extra_forwards: ClassVar[str] = "none"
    """Forward passes beside the one that answers, in words."""


class NormMember(Member):
    """How statistics are chosen at every normalisation layer."""

    adapts: ClassVar[bool] = True
    """False for the member that leaves every layer as it was trained."""
    batch_agnostic: ClassVar[bool] = False
    """True for a member of layer and group normalisation, whose activations are what the layer itself normalised."""
    per_sample: ClassVar[bool] = False
    """True for a member that looks at each sample's own moments: the batch then has a row for each of them."""
    needs: ClassVar[frozenset[Need]] = frozenset({Need.BATCH_NORM})

    def initial(self, source: Moments) -> Tensors:
        """State of a new stream: tensors whose last axis is the channels of all layers, side by side.

        Args:
            source: statistics of the trained model, all layers side by side, [C_total].
        """
        del source  # A stateless member remembers nothing.
        return {}

    def plan(self, source: Moments, batch: Batch, state: Tensors) -> tuple[Moments, Tensors]:
        """Choose the statistics that one layer normalises by.

        Args:
            source: statistics of the trained layer, [C].
            batch: moments of the batch at this layer, a row for each stream (or sample, see `per_sample`).
            state: this layer's part of the streams' states, each [S, ..., C].

        Returns:
            Moments of one row, or of as many as the batch's, and the new state, of the same names, shapes and dtypes.
        """
        raise NotImplementedError

    def standing(self, source: Moments, state: Tensors) -> Moments:
        """The statistics where nothing of a batch may be used: an edge's network has no others.

        A member that remembers nothing has only the source's.

        Args:
            source: statistics of the trained model, [C].
            state: as `initial` makes it, or of several streams, each [..., C].

        Returns:
            Moments [C], or of several streams, [S, C].
        """
        del state
        return source


class OutputMember(Member):
    """How predictions are adjusted after the network; its parameters and statistics stay as they are."""

    def initial(self, hosted: "HostedModel") -> Tensors:
        """State of a new stream."""
        del hosted  # A stateless member remembers nothing.
        return {}

    def adjust(
        self, hosted: "HostedModel", logits: Tensor, features: Tensor | None, state: Tensors
    ) -> tuple[Tensor, Tensors]:
        """Adjust the predictions of one stream's batch.

        Args:
            hosted: the model: its classes, its classifier, its calibration.
            logits: of the network, [B, classes].
            features: what the classifier read, [B, D]; None unless the member needs `Need.CLASSIFIER`.
            state: of the stream.

        Returns:
            Logits, whose softmax is the adjusted prediction, and the new state, of the same names, shapes and dtypes.
        """
        raise NotImplementedError
