"""How a stream learns from labels: a typed, validated value."""

from typing import Annotated

from pydantic import Field, model_validator

from ..member import Frozen
from .adab2n import AdaB2N
from .batch_norm import BatchNorm
from .continual_norm import ContinualNorm
from .der import DerPlusPlus
from .descent import Descent
from .er_ace import ErAce
from .group_norm import GroupNorm
from .network import Learns
from .replay import Replay

AnyNorm = Annotated[AdaB2N | BatchNorm | ContinualNorm | GroupNorm, Field(discriminator="name")]
AnyMethod = Annotated[ErAce | DerPlusPlus, Field(discriminator="name")]


class Learning(Frozen):
    """What a learning step does.

    Raises:
        ValueError: for values that cannot go together, with the remedy.
    """

    method: AnyMethod = Field(default_factory=ErAce, description="the loss over new and replayed samples")
    norm: AnyNorm | None = Field(
        default_factory=AdaB2N, description="in the place of batch norms; null keeps them and their trained statistics"
    )
    learns: Learns = Field("affine", description="the head and, beside it, the norm layers' parameters, or all")
    descent: Descent = Field(default_factory=Descent, description="the optimiser")
    replay: Replay = Field(default_factory=Replay, description="the memory")
    together: bool = Field(True, description="new and replayed samples in one forward pass, as one batch for the norms")
    augment: bool = Field(False, description="move and mirror images, new and replayed, at random")
    classes_per_task: int = Field(2, ge=1, description="as many new classes, in the order of their coming, are a task")
    max_new_classes: int = Field(1000, ge=0, le=100_000, description="outputs that the head may grow by")
    seed: int = Field(0, ge=0, lt=2**63, description="of what is kept, drawn, moved and of new outputs' weights")

    @model_validator(mode="after")
    def _go_together(self) -> "Learning":
        if isinstance(self.norm, AdaB2N) and not self.together:
            raise ValueError("norm adab2n balances the tasks of one batch; it needs together: true")
        if self.replay.keep == "features" and (self.learns != "head" or self.norm is not None):
            raise ValueError("stored features stay true only while the body does: use learns: head and norm: null")
        return self
