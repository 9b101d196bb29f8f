"""The network in ONNX Runtime, with the parameters of one version."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime

from normstream.clients.edge.errors import BadPackage, ProbeFailed
from normstream.clients.edge.memory import given_back
from normstream.clients.edge.package import Floats, Package, Parameters
from normstream.clients.edge.preprocessing import normalise

TOLERANCE = 1e-3  # relative to the largest logit: kernels differ between processors
_SPIN_US = 20  # about what the next operator takes to begin; more is lost where two sessions share the cores


class Runtime:
    """The fused network with one version of the parameters; another version is another runtime.

    The parameters are part of the session, so that convolutions and their batch norms fuse as in the plain network.
    Any number of threads may use it at once.

    Args:
        package: The model.
        parameters: Of its normalisation layers; left out, those of training.
        threads: For one forward pass; left out, as many as the machine has cores.

    Attributes:
        package: The model.
        parameters: Of its normalisation layers.

    Raises:
        BadPackage: ONNX Runtime cannot load the network.
    """

    def __init__(self, package: Package, parameters: Parameters | None = None, threads: int | None = None) -> None:
        self.package = package
        self.parameters = package.source if parameters is None else parameters
        self._threads = threads
        self._session = load(package.model, by_layer(package, self.parameters), threads)

    def updated(self, parameters: Parameters) -> Runtime:
        """Return a runtime with other parameters; this one goes on as it is."""
        return Runtime(self.package, parameters, self._threads)

    def logits(self, batch: Floats) -> Floats:
        """Run the network on preprocessed images, float32 `[B, 3, H, W]`: logits, `[B, classes]`."""
        (logits,) = self._session.run(["logits"], {"images": batch})
        return np.asarray(logits, np.float32)

    def probe(self, expected: Floats, tolerance: float = TOLERANCE) -> float:
        """Compare the logits of the package's reference images with those that the server has computed.

        Returns:
            The largest difference, relative to the largest expected logit, or to 1 where that is larger.

        Raises:
            ProbeFailed: It is above the tolerance, or there is no telling.
        """
        return compare(np.concatenate([self.logits(image) for image in references(self.package)]), expected, tolerance)


def references(package: Package) -> list[Floats]:
    """Return the package's reference images, ready for the network, one by one: a batch would take more memory."""
    batch = normalise(package.reference, package.manifest.preprocessing)
    return [batch[row : row + 1] for row in range(len(batch))]


def compare(logits: Floats, expected: Floats, tolerance: float) -> float:
    """Return the largest difference of logits, relative to the largest expected one.

    Raises:
        ProbeFailed: It is above the tolerance, or there is no telling.
    """
    if logits.shape != expected.shape:
        raise ProbeFailed(f"the logits are {logits.shape}; {expected.shape} was expected")
    difference = float(np.abs(logits - expected).max() / max(1.0, float(np.abs(expected).max())))
    if not difference <= tolerance:  # NaN is not
        raise ProbeFailed(f"the logits of the reference images are off by {difference:.2g}; {tolerance:.2g} is allowed")
    return difference


def load(path: Path, tensors: Mapping[str, Floats], threads: int | None) -> onnxruntime.InferenceSession:
    """Load a network with tensors that its file leaves out.

    Raises:
        BadPackage: ONNX Runtime cannot.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 3
    # The plan of all tensors is a second copy of what the first pass has taken: 20 MB for EfficientNet-Lite0 laid open.
    options.enable_mem_pattern = False
    # Threads that wait for the next operator spin; for the next pass they sleep, and leave their cores to the images
    # that are being prepared and to the update that is being tried.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(_SPIN_US))
    if tensors:
        # Not add_initializer: what a fusion takes up it would leave at the old values, without a word.
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(value) for value in tensors.values()]
        options.add_external_initializers(list(tensors), values)
    try:
        with given_back():
            return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # It has a class for each status, and no common one but this.
        raise BadPackage(f"ONNX Runtime cannot load {path.name}: {str(error)[:500]}") from error


def by_layer(package: Package, parameters: Parameters) -> dict[str, Floats]:
    """Return each layer's tensors, by the names that they have in the network."""
    tensors = {}
    start = dict.fromkeys(parameters, 0)
    for layer in package.manifest.layers:
        for name in layer.tensors:
            end = start[name] + layer.channels
            tensors[f"{layer.path}.{name}"] = np.ascontiguousarray(parameters[name][start[name] : end])
            start[name] = end
    return tensors
