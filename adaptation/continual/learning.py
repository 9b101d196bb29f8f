"""How a stream learns from labels: a typed, validated value."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ..member import Frozen, Member
from .adab2n import AdaB2N
from .batch_norm import BatchNorm
from .continual_norm import ContinualNorm
from .der import DerPlusPlus
from .descent import Descent
from .er_ace import ErAce
from .group_norm import GroupNorm
from .network import Learns
from .replay import Replay

METHODS: dict[str, type[Member]] = {"er_ace": ErAce, "derpp": DerPlusPlus}
NORMS: dict[str, type[Member]] = {"adab2n": AdaB2N, "bn": BatchNorm, "cn": ContinualNorm, "gn": GroupNorm}
AnyNorm = Annotated[AdaB2N | BatchNorm | ContinualNorm | GroupNorm, Field(discriminator="name")]
AnyMethod = Annotated[ErAce | DerPlusPlus, Field(discriminator="name")]


class Learning(Frozen):
    """What a learning step does.

    Raises:
        ValueError: for values that cannot go together, with the remedy.
    """

    head: Literal["trained", "new"] = Field("trained", description="start with the network's own classes, or with none")
    method: AnyMethod = Field(default_factory=ErAce, description="the loss over new and replayed samples")
    norm: AnyNorm | None = Field(
        None, description="in the place of batch norms; null keeps them and their trained statistics"
    )
    learns: Learns = Field("affine", description="the head and, beside it, the norm layers' parameters, or all")
    batch: int = Field(10, ge=1, le=512, description="new samples of a step, at most")
    descent: Descent = Field(default_factory=Descent, description="the optimiser")
    replay: Replay = Field(default_factory=Replay, description="the memory")
    unlabelled: Literal["nothing", "features", "images"] = Field(
        "nothing", description="what is kept for a while of predicted images, whose labels may still come"
    )
    together: bool = Field(True, description="new and replayed samples in one forward pass, as one batch for the norms")
    augment: bool = Field(False, description="move and mirror images, new and replayed, at random")
    classes_per_task: int = Field(2, ge=1, description="as many new classes, in the order of their coming, are a task")
    max_new_classes: int = Field(1000, ge=0, le=100_000, description="outputs that the head may grow by")
    seed: int = Field(0, ge=0, lt=2**63, description="of what is kept, drawn, moved and of new outputs' weights")

    @model_validator(mode="after")
    def _go_together(self) -> "Learning":
        if isinstance(self.norm, AdaB2N) and not self.together:
            raise ValueError("norm adab2n balances the tasks of one batch; it needs together: true")
        if "features" in {self.replay.keep, self.unlabelled} and not self.learns_from_features:
            raise ValueError(
                "stored features stay true only while the body does: use learns: head and norm: null, and"
                " replay.keep: features or nothing"
            )
        return self

    @property
    def own_network(self) -> bool:
        """Whether a stream's network differs from the hosted one in more than norm layers and head."""
        return self.learns == "all" or isinstance(self.norm, ContinualNorm | GroupNorm)

    @property
    def lesson_images(self) -> int:
        """The most images that a step passes through the network to learn from, new and replayed."""
        if self.learns_from_features:
            return 0
        draws = 0 if self.replay.keep == "nothing" else self.method.replays(2)
        return self.batch + draws * self.replay.batch

    @property
    def learns_from_features(self) -> bool:
        """Whether a sample may come as what the head reads, in place of an image."""
        return self.learns == "head" and self.norm is None and self.replay.keep != "images"
