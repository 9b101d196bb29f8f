"""What some members need to know of a model's source data, measured once on a few hundred images of it."""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor
from torch.nn import functional

from .hosting import HostedModel, HostingError
from .member import NormMember, Tensors
from .moments import Batch, Moments, side_by_side
from .rates import PUBLISHED_BATCH

FORMAT = "normstream.calibration/1"
FOLDER = "calibration"  # in the server's data folder
_CHUNK = 8  # images in one forward and backward pass, which needs memory for every activation
_ENTRY = "normstream"  # of the safetensors metadata


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """Measured by `normstream calibrate`, and kept beside the model by its fingerprint."""

    fingerprint: str  # of the model
    images: int  # how many it was measured on
    moments: Moments  # of the layer and group norms' outputs before their affine, side by side, [C_total of them]
    fisher: Tensor  # diagonal Fisher information of all layers' affine parameters, [2, C_total]
    feature_mean: Tensor  # of what the classifier reads, [D]; empty where the model has no linear classifier
    class_features: Tensor  # the same by predicted class, [classes, D]; classes never predicted have the mean of all

    @property
    def tensors(self) -> Tensors:
        """All that was measured, by name."""
        return {
            "moments.mean": self.moments.mean,
            "moments.var": self.moments.var,
            "fisher": self.fisher,
            "feature_mean": self.feature_mean,
            "class_features": self.class_features,
        }

    def to(self, device: torch.device) -> "Calibration":
        """The same on a device."""
        return _of(self.fingerprint, self.images, {name: value.to(device) for name, value in self.tensors.items()})

    def check(self, hosted: HostedModel) -> None:
        """Make sure that it was measured on this model.

        Raises:
            HostingError: when it belongs to another model, or holds what cannot have been measured.
        """
        if self.fingerprint != hosted.fingerprint:
            raise HostingError(
                f"the calibration was measured on a model with fingerprint {self.fingerprint},"
                f" and {hosted.name!r} has {hosted.fingerprint}"
            )
        samples = (sum(hosted.sample_norms.channels),)
        features = 0 if hosted.classifier is None else hosted.classifier.in_features
        expected = {
            "moments.mean": samples,
            "moments.var": samples,
            "fisher": (2, sum(hosted.layers.channels)),
            "feature_mean": (features,),
            "class_features": (hosted.classes, features),
        }
        for name, value in self.tensors.items():
            if value.shape != expected[name]:
                raise HostingError(f"{name} of the calibration is {list(value.shape)}, expected {list(expected[name])}")
            if not value.isfinite().all():
                raise HostingError(f"{name} of the calibration holds values that are not finite")
        if (self.moments.var < 0).any() or (self.fisher < 0).any():
            raise HostingError("the calibration holds a variance or a squared gradient below 0")


def spread(images: int) -> list[slice]:
    """Batches of 64 of as many images, or of slightly fewer, each from all over them.

    EATA squares the gradients of batches of 64; one of a single class would have a gradient of its own.
    """
    count = -(-images // PUBLISHED_BATCH)
    return [slice(start, None, count) for start in range(count)]


def calibrate(hosted: HostedModel, batches: Iterable[Tensor]) -> Calibration:
    """Measure a model on images of the kind that it was trained on.

    The Fisher information is EATA's (Niu et al. 2022, arXiv:2204.02610): the mean over batches of the squared gradient
    of the batch's mean cross-entropy with the model's own predictions as labels. It shrinks as batches grow; EATA's
    weight for it goes with batches of 64. Variances are biased.

    Args:
        hosted: the model; batch norms normalise by their statistics of training.
        batches: preprocessed images, each [B, C, H, W].

    Raises:
        ValueError: when there are no images.
        HostingError: when what the network makes of them is not finite.
    """
    affine = hosted.layers.affine
    width = 0 if hosted.classifier is None else hosted.classifier.in_features
    moments, fisher = side_by_side([layer.neutral for layer in hosted.sample_norms]), torch.zeros_like(affine)
    sums, counts = affine.new_zeros(hosted.classes, width), affine.new_zeros(hosted.classes, 1)
    images = steps = 0
    for batch in batches:
        gradient = torch.zeros_like(affine)
        for chunk in batch.to(hosted.device).split(_CHUNK):
            look = _look(hosted, chunk)
            images += len(chunk)
            moments = moments.merge(look.moments, len(chunk) / images)
            gradient += look.gradient / len(batch)
            sums.index_add_(0, look.predicted, look.features)
            counts.index_add_(0, look.predicted, counts.new_ones(len(chunk), 1))
        fisher += gradient.square()
        steps += 1
    if not images:
        raise ValueError("there are no images to calibrate on")
    mean = sums.sum(0) / images
    by_class = torch.where(counts > 0, sums / counts.clamp(min=1), mean)
    calibration = Calibration(hosted.fingerprint, images, moments, fisher / steps, mean, by_class)
    calibration.check(hosted)
    return calibration


class _Look(NamedTuple):
    """What is seen of some images; nothing in it has a derivative."""

    moments: Moments  # of the layer and group norms' outputs, [C_total of them]
    gradient: Tensor  # of the sum of the images' losses, [2, C_total]
    predicted: Tensor  # [B]
    features: Tensor  # [B, D]; D is 0 where the model has no linear classifier


class _Watch(NormMember):
    """Leaves layer and group norms as they are trained; what they give is noted as for any member."""

    name: Literal["watch"] = "watch"
    batch_agnostic = True

    def plan(self, source: Moments, batch: Batch, state: Tensors) -> tuple[Moments, Tensors]:
        del batch
        return Moments(torch.zeros_like(source.mean), torch.ones_like(source.var)), state


def _look(hosted: HostedModel, images: Tensor) -> _Look:
    """One forward and one backward pass."""
    layers, samples = hosted.layers, hosted.sample_norms
    affine = layers.affine.clone().requires_grad_()
    part = hosted.part(_Watch(), (len(images),), {}, affine.unsqueeze(0))
    with torch.enable_grad():
        logits, features = hosted.forward(images, [part])
        predicted = logits.detach().argmax(1)
        loss = functional.cross_entropy(logits, predicted, reduction="sum")
        gradient = torch.autograd.grad(loss, affine)[0] if layers else torch.zeros_like(affine)
    seen = side_by_side([part.seen[path] for path in samples.paths])
    features = logits.new_empty(len(images), 0) if features is None else features
    return _Look(Moments(seen.mean.detach(), seen.var.detach()), gradient, predicted, features.detach())


def file_of(data: Path, fingerprint: str) -> Path:
    """Where a model's calibration lies in a server's data folder."""
    return data / FOLDER / f"{fingerprint.replace(':', '-')}.safetensors"


def save(calibration: Calibration, data: Path) -> Path:
    """Write the calibration into a server's data folder; the file that it now is.

    Raises:
        OSError: when it cannot be written.
    """
    path = file_of(data, calibration.fingerprint)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Written beside and renamed, so that a server that starts meanwhile finds the whole file or none.
    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        partial.write_bytes(_encode(calibration))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def load(hosted: HostedModel, data: Path) -> Calibration | None:
    """The model's calibration from a server's data folder; None where it has none.

    Raises:
        HostingError: when the file is cut short, was changed, or is of another model; the message says what to do.
    """
    path = file_of(data, hosted.fingerprint)
    try:
        if not path.exists():
            return None
        calibration = _decode(path)
        calibration.check(hosted)
    except (OSError, ValueError, SafetensorError) as error:
        raise HostingError(
            f"cannot use the calibration {str(path)!r} of model {hosted.name!r}: {error}. Measure it again with"
            f" `normstream calibrate {hosted.name} --data FOLDER`, or remove the file"
        ) from None
    return calibration


def _of(fingerprint: str, images: int, tensors: Tensors) -> Calibration:
    return Calibration(
        fingerprint,
        images,
        Moments(tensors["moments.mean"], tensors["moments.var"]),
        tensors["fisher"],
        tensors["feature_mean"],
        tensors["class_features"],
    )


def _encode(calibration: Calibration) -> bytes:
    header = {"format": FORMAT, "fingerprint": calibration.fingerprint, "images": calibration.images}
    tensors = {name: value.cpu().contiguous() for name, value in calibration.tensors.items()}
    return _bytes(header | {"digest": _digest(header, tensors)}, tensors)


def _decode(path: Path) -> Calibration:
    with safe_open(path, framework="pt") as file:
        header = _header((file.metadata() or {}).get(_ENTRY, ""))
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    if header.get("format") != FORMAT:
        raise ValueError(f"its format is {header.get('format')!r}, expected {FORMAT!r}")
    if header.pop("digest", None) != _digest(header, tensors):
        raise ValueError("the digest does not match: it was changed after it was written")
    return _of(header["fingerprint"], header["images"], tensors)


def _header(text: str) -> dict[str, Any]:
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return header if isinstance(header, dict) else {}


def _digest(header: dict[str, Any], tensors: Tensors) -> str:
    return hashlib.sha256(_bytes(header, tensors)).hexdigest()


def _bytes(header: dict[str, Any], tensors: Tensors) -> bytes:
    # One entry of metadata: safetensors writes several in no fixed order.
    return to_bytes(dict(sorted(tensors.items())), {_ENTRY: json.dumps(header, sort_keys=True)})
