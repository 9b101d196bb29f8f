"""The network with its batch norms laid open.

They do not fuse with the convolutions then, and every activation is read twice more. A forward pass takes 1.6 to 1.8
times as long for it (EfficientNet-Lite0).
"""

from __future__ import annotations

from copy import copy

import numpy as np

from normstream.clients.edge.errors import BadPackage
from normstream.clients.edge.package import Floats, Package, Parameters
from normstream.clients.edge.runtime import by_layer, compare, load, references


class OpenNetwork:
    """The network, and one version of the affine parameters.

    Args:
        package: The model, one with batch norms.
        parameters: Of its normalisation layers; the statistics among them are not used.
        threads: For one forward pass; left out, as many as the machine has cores.

    Raises:
        BadPackage: The model has no batch norms, or ONNX Runtime cannot load it.
    """

    def __init__(self, package: Package, parameters: Parameters, threads: int | None) -> None:
        path = package.adaptive
        if path is None:
            raise BadPackage(f"{package.manifest.model} has no batch norms whose statistics an edge could adapt")
        self._package = package
        self._path = path
        self._threads = threads
        self._affine, fixed = _parted(package, parameters)
        self._session = load(path, fixed, threads)

    def updated(self, parameters: Parameters) -> OpenNetwork:
        """Return the network with other affine parameters."""
        other = copy(self)
        other._affine, fixed = _parted(self._package, parameters)
        if fixed:
            other._session = load(self._path, fixed, self._threads)
        return other

    def run(self, batch: Floats, given: Parameters, alpha: float = 0.0) -> tuple[Floats, Floats, Floats]:
        """Run it on preprocessed images, float32 `[B, 3, H, W]`.

        Args:
            batch: The images.
            given: Their "mean" and "var" are mixed with the batch's.
            alpha: The weight of the batch's.

        Returns:
            The logits `[B, classes]`, and the batch's mean and biased variance `[C_total]`.
        """
        feed = {"images": batch, "mean": given["mean"], "var": given["var"], "alpha": np.asarray(alpha, np.float32)}
        logits, mean, var = self._session.run(["logits", "batch_mean", "batch_var"], feed | self._affine)
        return logits, mean, var

    def probe(self, given: Parameters, expected: Floats, tolerance: float) -> float:
        """Compare the logits of the package's reference images with those that the server has computed.

        Raises:
            ProbeFailed: They differ.
        """
        logits = np.concatenate([self.run(image, given)[0] for image in references(self._package)])
        return compare(logits, expected, tolerance)


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
