"""Adaptation on the edge itself: statistics of its own batches, mixed into those of its parameters.

It needs the network with its batch norms laid open: they do not fuse with the convolutions, and every activation is
read twice more. A forward pass takes about 1.8 times as long for it (EfficientNet-Lite0, one thread).
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from typing import Self, TypeAlias
from zipfile import BadZipFile

import numpy as np

from normstream.clients.edge.errors import BadPackage
from normstream.clients.edge.package import STATISTICS, Floats, Package, Parameters
from normstream.clients.edge.runtime import TOLERANCE, by_layer, compare, load, references


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
    """

    momentum: float = 0.0125
    alpha: float = 0.2

    def __post_init__(self) -> None:
        _check_share("momentum", self.momentum)
        _check_share("alpha", self.alpha)


Method: TypeAlias = AlphaBN | EMA


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


class LocalRuntime:
    """A network that adapts its statistics to what it sees, in place of `Runtime`; for one thread.

    Args:
        package: The model, one with batch norms.
        parameters: Of its normalisation layers; left out, those of training.
        method: How the edge's own statistics are mixed in.
        threads: For one forward pass; left out, as many as the machine has cores.

    Attributes:
        package: The model.
        parameters: Of its normalisation layers, without what this edge adds.
        running: The running statistics; None with `AlphaBN`.

    Raises:
        BadPackage: The model has no batch norms, or ONNX Runtime cannot load it.
    """

    def __init__(
        self,
        package: Package,
        parameters: Parameters | None = None,
        method: Method | None = None,
        threads: int | None = None,
    ) -> None:
        path = package.adaptive
        if path is None:
            raise BadPackage(f"{package.manifest.model} has no batch norms whose statistics an edge could adapt")
        self.package = package
        self.parameters = package.source if parameters is None else parameters
        self.method = method or AlphaBN()
        self.running = (
            Running(self.parameters["mean"], self.parameters["var"]) if isinstance(self.method, EMA) else None
        )
        self._load = partial(load, path, threads=threads)
        self._affine, fixed = _parted(package, self.parameters)
        self._session = self._load(fixed)

    def updated(self, parameters: Parameters) -> LocalRuntime:
        """Return a runtime with other parameters; the running statistics go on."""
        other = copy(self)
        other.parameters = parameters
        other._affine, fixed = _parted(self.package, parameters)
        if fixed:
            other._session = self._load(fixed)
        return other

    def logits(self, batch: Floats) -> Floats:
        """Run the network on preprocessed images, float32 `[B, 3, H, W]`, and learn from them: `[B, classes]`."""
        if isinstance(self.method, AlphaBN) or self.running is None:
            return self._run(batch, self.parameters["mean"], self.parameters["var"], self.method.alpha)[0]
        share = np.float32(self.method.alpha)
        mean = self.parameters["mean"] + share * (self.running.mean - self.parameters["mean"])
        var = self.parameters["var"] + share * (self.running.var - self.parameters["var"])
        logits, batch_mean, batch_var = self._run(batch, mean, var, 0.0)
        if np.isfinite(batch_mean).all() and np.isfinite(batch_var).all():
            self.running = self.running.merge(batch_mean, batch_var, 1 - (1 - self.method.momentum) ** len(batch))
        return logits

    def probe(self, expected: Floats, tolerance: float = TOLERANCE) -> float:
        """Compare the logits of the package's reference images, without this edge's statistics, with the server's.

        Raises:
            ProbeFailed: They differ.
        """
        given = (self.parameters["mean"], self.parameters["var"], 0.0)
        logits = np.concatenate([self._run(image, *given)[0] for image in references(self.package)])
        return compare(logits, expected, tolerance)

    def _run(self, batch: Floats, mean: Floats, var: Floats, alpha: float) -> list[Floats]:
        feed = {"images": batch, "mean": mean, "var": var, "alpha": np.asarray(alpha, np.float32), **self._affine}
        return list(self._session.run(["logits", "batch_mean", "batch_var"], feed))


def _parted(package: Package, parameters: Parameters) -> tuple[dict[str, Floats], dict[str, Floats]]:
    """Part the affine parameters in those of the batch norms, which are inputs, and others, which a session keeps."""
    tensors = by_layer(package, parameters)
    layers = package.manifest.layers
    affine = {
        name: np.concatenate([tensors[f"{layer.path}.{name}"] for layer in layers if layer.batch_norm])
        for name in ("weight", "bias")
    }
    others = [f"{layer.path}.{name}" for layer in layers if not layer.batch_norm for name in layer.tensors]
    return affine, {name: tensors[name] for name in others}


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value}; give a number from 0 to 1")
