"""Exported graphs against torch, before anyone relies on them."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor

from .hosting import HostedModel, HostingError
from .layers import Layers
from .member import Tensors
from .part import Seen
from .reference import forward_with, normalised, reference_images

TOLERANCE = 1e-4  # of logits; relative where they are greater than 1
_ALPHA = 0.3

Arrays = dict[str, NDArray[np.float32]]


def check(hosted: HostedModel, folder: Path, source: Tensors) -> None:
    """Compare `model.onnx` and `adaptive.onnx` in `folder` with torch, at batches of one and three.

    Raises:
        HostingError: when ONNX Runtime cannot run one of them, or answers otherwise.
    """
    images = normalised(hosted, reference_images(hosted))
    images = torch.cat([images, images[:1].flip(-1)])
    try:
        for parameters in (source, _altered(source)):
            _check_model(hosted, folder / "model.onnx", parameters, images)
            if hosted.batch_norms:
                _check_adaptive(hosted, folder / "adaptive.onnx", parameters, images)
    except HostingError:
        raise
    except Exception as error:  # ONNX Runtime's have no base of their own.
        raise HostingError(f"ONNX Runtime cannot run {hosted.name!r}: {error}") from error


def session(path: Path, tensors: Mapping[str, NDArray[np.float32]]) -> onnxruntime.InferenceSession:
    """A session of a graph whose external initializers are these tensors, by their names in the graph."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # Threads that wait must not spin.
    values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(tensor) for name, tensor in tensors.items()}
    options.add_external_initializers(list(values), list(values.values()))
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def named(layers: Layers, parameters: Tensors) -> Arrays:
    """Parameters side by side as the external initializers of `model.onnx`, each [C]."""
    batch_norms = Layers(layer for layer in layers if layer.normalise is None)
    groups = [(layers, "weight"), (layers, "bias"), (batch_norms, "mean"), (batch_norms, "var")]
    return {
        f"{layer.path}.{name}": np.ascontiguousarray(piece.cpu().numpy())
        for group, name in groups
        if group
        for layer, piece in zip(group, parameters[name].split(group.channels), strict=True)
    }


def _check_model(hosted: HostedModel, path: Path, parameters: Tensors, images: Tensor) -> None:
    run = session(path, named(hosted.layers, parameters))
    for batch in (images[:1], images):
        (logits,) = run.run(["logits"], {"images": batch.cpu().numpy()})
        expected = forward_with(hosted, parameters, batch)[0].logits
        _demand_equal(hosted, logits, expected, f"{path.name} gives other logits")


def _check_adaptive(hosted: HostedModel, path: Path, parameters: Tensors, images: Tensor) -> None:
    run = session(path, named(hosted.sample_norms, parameters_of(hosted, hosted.sample_norms, parameters)))
    given = parameters_of(hosted, hosted.batch_norms, parameters)
    feed = {name: tensor.cpu().numpy() for name, tensor in given.items()} | {"alpha": np.asarray(_ALPHA, np.float32)}
    for batch in (images[:1], images):
        logits, mean, var = run.run(["logits", "batch_mean", "batch_var"], {"images": batch.cpu().numpy(), **feed})
        forwarded, part = forward_with(hosted, parameters, batch, _ALPHA)
        seen = Seen(hosted.batch_norms, part).of(0)
        for array, expected, what in (
            (logits, forwarded.logits, "logits"),
            (mean, seen.mean, "batch means"),
            (var, seen.var, "batch variances"),
        ):
            _demand_equal(hosted, array, expected, f"{path.name} gives other {what}")


def parameters_of(hosted: HostedModel, layers: Layers, parameters: Tensors) -> Tensors:
    """Parameters of some layers, from all layers' side by side; statistics are the batch norms' anyway."""
    wanted = set(layers.paths)
    chosen = torch.cat(
        [torch.full((layer.channels,), layer.path in wanted) for layer in hosted.layers] or [torch.empty(0).bool()]
    )
    affine = {name: parameters[name].cpu()[chosen] for name in ("weight", "bias")}
    return affine | {name: parameters[name] for name in ("mean", "var") if name in parameters}


def _altered(source: Tensors) -> Tensors:
    """Parameters as some adaptation might leave them: nothing as it was."""
    generator = torch.Generator().manual_seed(0)

    def noise(like: Tensor, scale: float) -> Tensor:
        return scale * torch.randn(like.shape, generator=generator)

    altered = {
        "weight": source["weight"] * (1 + noise(source["weight"], 0.02)),
        "bias": source["bias"] + noise(source["bias"], 0.02),
    }
    if "var" in source:
        altered["mean"] = source["mean"] + noise(source["mean"], 0.05) * source["var"].sqrt()
        altered["var"] = source["var"] * (1 + 0.2 * torch.rand(source["var"].shape, generator=generator))
    return altered


def _demand_equal(hosted: HostedModel, seen: NDArray[np.float32], expected: Tensor, complaint: str) -> None:
    error = float(np.abs(seen - expected.cpu().numpy()).max())
    if not error <= TOLERANCE * max(1.0, expected.abs().max().item()):
        raise HostingError(f"{hosted.name!r} exported to ONNX: {complaint} than torch (by {error:.2g})")
