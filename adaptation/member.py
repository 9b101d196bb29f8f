"""What a member of the `norm` slot of a recipe is: frozen hyper-parameters and pure functions of tensors.

A new member is one new file in `adaptation/norm/` with one subclass of `NormMember`; `adaptation.recipe` finds it.
"""

from typing import ClassVar

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from .moments import Batch, Moments

Tensors = dict[str, Tensor]


class Frozen(BaseModel):
    """A value: it compares, hashes, refuses unknown fields and never changes."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class NormMember(Frozen):
    """How statistics are chosen at every normalisation layer.

    The first paragraph of a member's docstring says what it does and cites its source.
    """

    name: str
    adapts: ClassVar[bool] = True
    """False for the member that leaves every layer as it was trained."""
    per_sample: ClassVar[bool] = False
    """True for a member that looks at each sample's own moments: the batch then has a row for each of them."""

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
