"""What a member of the `update` slot is that has a teacher: it learns from samples that are sent, not from answers."""

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, NamedTuple

from pydantic import BeforeValidator, Field
from torch import Tensor

from .learner import Learner, Passes
from .losses import entropy
from .member import Member, Need, NormMember, Tensors
from .moments import Batch, Moments
from .norm.tbr import TBR
from .slots import NORM_MEMBERS, one_of


class Published(TBR):
    """As batch normalisation in training: the batch's own statistics while it learns, the running ones elsewhere."""

    name: Literal["published"] = "published"  # type: ignore[assignment] # another literal than TBR's

    def plan(self, source: Moments, batch: Batch, state: Tensors) -> tuple[Moments, Tensors]:
        """The batch's, and the running statistics moved as those of `tbr`."""
        running, moved = super().plan(source, batch, state)
        if not batch.moments.mean.requires_grad:
            return running, moved
        return batch.biased(fallback=Moments(state["mean"], state["var"])), moved


_TEACHER_NORMS = NORM_MEMBERS | {"published": Published}


def _spelt_out(value: object) -> object:
    if not isinstance(value, str):
        return value
    if value not in _TEACHER_NORMS:
        raise ValueError(f"unknown norm member; there are {', '.join(_TEACHER_NORMS)}")
    return {"name": value}


if TYPE_CHECKING:
    TeacherNorm = NormMember
else:
    TeacherNorm = Annotated[one_of(*_TEACHER_NORMS.values()), BeforeValidator(_spelt_out)]


class Images(NamedTuple):
    """What one lesson is about, as student and teacher see it: the new samples, then runs of replayed ones."""

    student: list[Tensor]  # each [n, 3, H, W], preprocessed
    teacher: list[Tensor]

    @property
    def new(self) -> int:
        """How many samples are new."""
        return len(self.student[0])


class Lesson(NamedTuple):
    """What one lesson leaves."""

    student: Learner
    teacher: Learner
    student_loss: float
    teacher_loss: float
    targets: Tensor  # the teacher's logits of the new samples, [n, classes]

    @property
    def teacher_entropy(self) -> float:
        """Mean of the new samples' targets, in nats."""
        return entropy(self.targets).mean().item()


class TaughtMember(Member):
    """How a student's affine parameters move by what a teacher says of uploaded samples.

    Rates are for a whole batch; fewer new samples take their share of a step.
    """

    teacher: str = Field(
        "tf_efficientnet_lite2", pattern=r"^[\w.-]{1,128}$", description="the hosted model that teaches"
    )
    teacher_norm: TeacherNorm = Field(
        default_factory=lambda: NORM_MEMBERS["alpha_bn"](name="alpha_bn"),
        description="statistics at the teacher's layers: a norm member's name or the member",
    )
    batch: int = Field(32, ge=1, le=512, description="new samples in a step")
    replay: int = Field(96, ge=0, le=512, description="samples of before that join a whole batch")
    replay_bytes: int = Field(4 * 2**20, ge=0, le=2**28, description="size of the replay buffer; 0 keeps no sample")
    replay_age_s: float = Field(
        86400.0, gt=0, le=30 * 86400, description="seconds after which a sample leaves the replay buffer"
    )
    patience_s: float = Field(
        60.0, ge=0, le=86400, description="seconds that a sample waits for its batch to fill before it is learnt from"
    )

    needs: ClassVar[frozenset[Need]] = frozenset({Need.NORM})
    usual_norm: ClassVar[str] = "source"
    """The norm member of the preset of this member's name."""

    def lesson(self, student: Learner, teacher: Learner, images: Images) -> Passes[Lesson]:
        """One step of both, in passes.

        Args:
            student: the edge's model.
            teacher: the foundation model.
            images: at most `batch` new samples, and replayed ones.
        """
        raise NotImplementedError
