"""Packages: what a device needs to run a hosted model without torch (docs/edge-package.md)."""

import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from .edge_parameters import edge_parameters
from .export_check import check
from .export_graph import adaptive, replaceable
from .export_trace import trace
from .hosting import HostedModel, HostingError
from .member import Tensors
from .models import labels
from .package_files import MANIFEST, is_whole, listed, place_of, scratch_prefix
from .recipe import PRESETS
from .reference import reference_images
from .state import initial_state

FORMAT = "normstream.package/1"
_LARGEST_BYTES = 2**31 - 1  # of a protocol buffer


def export(hosted: HostedModel, folder: Path) -> Path:
    """Write a model's package, unless a whole one is there.

    It is written beside its place and moved there when ONNX Runtime has given torch's answers. Tracing changes
    settings of torch for the whole process: run nothing else of torch meanwhile.

    Args:
        hosted: the model.
        folder: where packages are kept, each in a folder by its fingerprint.

    Returns:
        The package's folder.

    Raises:
        HostingError: when the network cannot be exported, with the layer, the operator and the reason where known.
    """
    place = place_of(folder, hosted.fingerprint)
    if is_whole(place):
        return place
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=scratch_prefix(os.getpid()), dir=folder) as scratch:
        fresh = Path(scratch) / "package"
        fresh.mkdir()
        _write(hosted, fresh)
        if place.exists() and not is_whole(place):
            place.rename(Path(scratch) / "damaged")
        with contextlib.suppress(OSError):  # Another process has just put the same there.
            fresh.rename(place)
    return place


def source_parameters(hosted: HostedModel) -> Tensors:
    """The trained network's own: `weight`, `bias` [C_total] of all layers; of batch norms `mean`, `var` [C_total]."""
    return edge_parameters(hosted, initial_state(hosted, PRESETS["source"]))


def _write(hosted: HostedModel, folder: Path) -> None:
    if not hosted.layers:
        raise HostingError(f"{hosted.name!r} has no normalisation layer that is served: an edge could not adapt it")
    source = source_parameters(hosted)
    marked = trace(hosted)
    if marked.ByteSize() > _LARGEST_BYTES:
        raise HostingError(f"{hosted.name!r} is larger than the 2 GiB that one ONNX file can hold")
    (folder / "model.onnx").write_bytes(replaceable(marked, hosted.layers).SerializeToString())
    if hosted.batch_norms:
        (folder / "adaptive.onnx").write_bytes(adaptive(marked, hosted.layers).SerializeToString())
    check(hosted, folder, source)
    arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in source.items()}
    np.savez(folder / "norm.npz", **arrays)
    np.save(folder / "reference.npy", reference_images(hosted))
    manifest = json.dumps(_manifest(hosted, folder), indent=1, ensure_ascii=False)
    (folder / MANIFEST).write_text(manifest + "\n", encoding="utf-8")


def _manifest(hosted: HostedModel, folder: Path) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "model": hosted.name,
        "fingerprint": hosted.fingerprint,
        "architecture": hosted.architecture,
        "classes": hosted.classes,
        "labels": labels(hosted),
        "preprocessing": hosted.preprocessing.model_dump(),
        "layers": [
            {
                "path": layer.path,
                "kind": layer.kind,
                "channels": layer.channels,
                "batch_norm": layer.normalise is None,
            }
            for layer in hosted.layers
        ],
        "files": {path.name: listed(path) for path in sorted(folder.iterdir())},
    }
