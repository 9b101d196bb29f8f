"""EATA: ETA, held near the source where the source's task needs it."""

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor

from ..member import Need, Tensors
from ..turn import Pass, Turn
from ..update_member import Objective
from .eta import Eta


class Eata(Eta):
    """ETA with a pull to the source, stronger for parameters that matter to it (Niu et al. 2022, arXiv:2204.02610).

    To ETA's loss comes `beta` * sum_i F_i (theta_i - theta_i of the source)^2. F is the diagonal Fisher information of
    the affine parameters, measured once on images of the source. Some published code does without the term when it was
    given no such images; here the model is refused until it is calibrated.
    """

    name: Literal["eata"] = "eata"  # type: ignore[assignment] # narrows Eta's literal
    beta: float = Field(2000.0, ge=0, le=1e9, description="weight of the pull; 1 is published for CIFAR")

    needs: ClassVar[frozenset[Need]] = Eta.needs | {Need.FISHER}

    def objective(self, turn: Turn, affine: Tensor, answer: Pass, memory: Tensors) -> Objective:
        """ETA's, and the pull; no step where ETA keeps nothing."""
        eta = super().objective(turn, affine, answer, memory)
        assert turn.hosted.calibration is not None
        away = (affine - turn.hosted.layers.affine).square() * turn.hosted.calibration.fisher
        return eta._replace(loss=eta.loss + self.beta * away.flatten(1).sum(1))
