"""Adaptation on the edge itself: statistics of its own images, mixed into those of its parameters."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from typing import Literal, Self, TypeAlias
from zipfile import BadZipFile

import numpy as np

from normstream.clients.edge.errors import BadPackage
from normstream.clients.edge.package import STATISTICS, Floats, Package, Parameters


@dataclass(frozen=True, slots=True)
class AlphaBN:
    """Mix in the batch's statistics with a fixed weight (You, Li and Zhao 2021, arXiv:2110.04065).

    Attributes:
        alpha: The weight of the batch.
    """

    alpha: float = 0.1

    def __post_init__(self) -> None:
        _check_share("alpha", self.alpha)


@dataclass(frozen=True, slots=True)
class EMA:
    """Mix in running statistics, for edges that see one image at a time (after RoTTA, arXiv:2303.13899).

    The server's `ema` takes a batch into the running statistics before it is normalised by them; here the batch is
    taken in after, because the moments of one layer are known only when those before it have been passed.

    Attributes:
        momentum: The weight of one new image in the running statistics.
        alpha: The weight of the running statistics.
        share: Of the time, what taking images in may cost; of more images than that allows, some are only predicted.
    """

    momentum: float = 0.0125
    alpha: float = 0.2
    share: float = 0.02

    def __post_init__(self) -> None:
        _check_share("momentum", self.momentum)
        _check_share("alpha", self.alpha)
        if not self.share > 0:
            raise ValueError(f"share is {self.share}; give a number above 0")


Method: TypeAlias = AlphaBN | EMA
Choice: TypeAlias = Method | Literal["auto"] | None
"""None is off, and "auto" `EMA()` where the model has batch norms."""


@dataclass(frozen=True, slots=True, eq=False)
class Running:
    """Running mean and biased variance of each channel of the batch norms, [C_total]."""

    mean: Floats
    var: Floats

    @classmethod
    def unpacked(cls, content: bytes, package: Package) -> Self:
        """Read what `packed` wrote.

        Raises:
            BadPackage: It is damaged, or of other weights than the package's.
        """
        try:
            with np.load(BytesIO(content), allow_pickle=False) as file:
                fingerprint, running = str(file["fingerprint"]), cls(file["mean"], file["var"])
        # RuntimeError: bits that say to zipfile that the entry is encrypted, or packed in a way that it does not know.
        except (OSError, ValueError, KeyError, EOFError, RuntimeError, BadZipFile) as error:
            raise BadPackage(f"the running statistics cannot be read: {error}") from error
        if fingerprint != package.manifest.fingerprint:
            raise BadPackage(f"the running statistics are of the weights {fingerprint:.80}")
        for name in STATISTICS:
            value = getattr(running, name)
            if value.dtype != np.float32 or value.shape != package.source[name].shape or not np.isfinite(value).all():
                raise BadPackage(f"{name} of the running statistics does not fit the model")
        if (running.var < 0).any():
            raise BadPackage("var of the running statistics is negative")
        return running

    def packed(self, package: Package) -> bytes:
        """Return them as bytes, with the fingerprint of the weights that they are of."""
        content = BytesIO()
        np.savez(content, mean=self.mean, var=self.var, fingerprint=np.asarray(package.manifest.fingerprint))
        return content.getvalue()

    def merge(self, mean: Floats, var: Floats, weight: float) -> Running:
        """Return the moments of the mixture that draws from the new ones with probability `weight`."""
        apart = mean - self.mean
        within = self.var + np.float32(weight) * (var - self.var)
        return Running(self.mean + np.float32(weight) * apart, within + np.float32(weight * (1 - weight)) * apart**2)

    def mixed_into(self, parameters: Parameters, weight: float) -> Parameters:
        """Return parameters whose statistics hold these with a weight."""
        share = np.float32(weight)
        mean, var = parameters["mean"], parameters["var"]
        return {**parameters, "mean": mean + share * (self.mean - mean), "var": var + share * (self.var - var)}


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value}; give a number from 0 to 1")
