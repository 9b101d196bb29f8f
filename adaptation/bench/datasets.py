"""Labelled images: folders of photographs, and CIFAR-10 in one file."""

import hashlib
import io
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from timm.data import ImageNetInfo, create_transform

from normstream.adaptation import HostedModel
from normstream.adaptation.bench.errors import BenchError
from normstream.adaptation.bench.orders import Indices
from normstream.adaptation.bench.source_model import host_cifar, host_timm

Pixels: TypeAlias = NDArray[np.uint8]  # [N, H, W, 3]

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
NUMBERED = re.compile(r"(\d+)_")
WNID = re.compile(r"n\d{8}")
SIDE = 32  # of a CIFAR image
LAYOUTS = (
    "photographs named NNN_WNID_NAME.jpg (NNN is the class index), a folder of photographs for each class,"
    " or CIFAR-10's test.npz"
)


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Clean images at the size that the model takes."""

    pixels: Pixels
    labels: Indices  # [N]
    numbers: Indices  # [N], of each image in the whole data, whatever part of it is used

    @property
    def digest(self) -> str:
        """Equal for equal images, labels and numbers, in hexadecimal."""
        digest = hashlib.sha256(str(self.pixels.shape).encode())
        for array in (self.pixels, self.labels, self.numbers):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


class Source(Protocol):
    """Where images lie."""

    small: bool
    """Images of 32x32, which have corruption constants of their own."""

    def host(self, model: str | None) -> HostedModel:
        """The model to start from."""

    def load(self, hosted: HostedModel, count: int | None) -> Dataset:
        """`count` images, evenly spaced, or all if there are no more."""


def find(path: Path) -> Source:
    """See which layout a path has.

    Raises:
        BenchError: when it has none.
    """
    if not path.exists():
        raise BenchError(f"there is no {str(path)!r}")
    if path.is_file():
        return CifarFile(path)
    if (path / "test.npz").is_file():
        return CifarFile(path / "test.npz")
    photographs = _images(path)
    if photographs:
        return Photographs(tuple(photographs), tuple(_number(photo) for photo in photographs))
    folders = {folder: _images(folder) for folder in sorted(path.iterdir()) if folder.is_dir()}
    folders = {folder: images for folder, images in folders.items() if images}
    if not folders:
        raise BenchError(f"no images in {str(path)!r}; expected {LAYOUTS}")
    return _of_folders(folders)


@dataclass(frozen=True, slots=True)
class Photographs:
    """Photographs of any size, with the index of each one's class."""

    files: tuple[Path, ...]
    labels: tuple[int, ...]
    small = False

    def host(self, model: str | None) -> HostedModel:
        """A timm model."""
        return host_timm(model)

    def load(self, hosted: HostedModel, count: int | None) -> Dataset:
        """Decode, resize and crop as the model wants it; it is normalised later, after the corruption."""
        numbers = _spaced(len(self.files), count)
        labels = np.array(self.labels)[numbers]
        _check_labels(labels, hosted)
        settings = hosted.preprocessing.model_dump()
        crop: Callable[[Image.Image], Pixels] = create_transform(**settings, is_training=False, use_prefetcher=True)
        pixels = np.stack([crop(_opened(self.files[number])) for number in numbers])
        return Dataset(np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)), labels, numbers)


@dataclass(frozen=True, slots=True)
class CifarFile:
    """An npz of `jpeg` (all files' bytes joined), `offsets` [N + 1] and `labels` [N]; weights lie beside it."""

    path: Path
    small = True

    def host(self, model: str | None) -> HostedModel:
        """The CIFAR-10 network, its weights from `model` or the one safetensors file beside the data."""
        if model is not None:
            return host_cifar(Path(model))
        found = sorted(self.path.parent.glob("*.safetensors"))
        if len(found) != 1:
            raise BenchError(
                f"--model: {len(found)} .safetensors files beside {str(self.path)!r}; put the source model there or"
                " give its file"
            )
        return host_cifar(found[0])

    def load(self, hosted: HostedModel, count: int | None) -> Dataset:
        """Decode the images."""
        jpeg, offsets, all_labels = self._read()
        numbers = _spaced(len(all_labels), count)
        labels = all_labels[numbers]
        _check_labels(labels, hosted)
        pixels = [self._decode(jpeg[offsets[number] : offsets[number + 1]], number) for number in numbers]
        return Dataset(np.stack(pixels), labels, numbers)

    def _read(self) -> tuple[NDArray[np.uint8], Indices, Indices]:
        try:
            with self.path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                jpeg, offsets, labels = (np.asarray(arrays[name]) for name in ("jpeg", "offsets", "labels"))
        except (OSError, ValueError, KeyError, AttributeError, TypeError, BadZipFile, EOFError) as error:
            raise self._refusal(str(error)) from None
        whole = jpeg.dtype == np.uint8 and all(array.ndim == 1 for array in (jpeg, offsets, labels))
        whole = whole and all(np.issubdtype(array.dtype, np.integer) for array in (offsets, labels))
        if not whole or not 0 < len(labels) == len(offsets) - 1:
            raise self._refusal(f"shapes are {jpeg.shape}, {offsets.shape}, {labels.shape}")
        if offsets[0] != 0 or offsets[-1] != len(jpeg) or (np.diff(offsets) <= 0).any():
            raise self._refusal(f"the offsets do not cut up its {len(jpeg)} bytes")
        return jpeg, offsets, labels.astype(np.int64)

    def _decode(self, data: NDArray[np.uint8], number: int) -> Pixels:
        image = _opened(io.BytesIO(data.tobytes()), f"image {number} of {str(self.path)!r}")
        if image.size != (SIDE, SIDE):
            raise self._refusal(f"image {number} has {image.width}x{image.height} pixels, not {SIDE}x{SIDE}")
        return np.asarray(image)

    def _refusal(self, reason: str) -> BenchError:
        return BenchError(
            f"{str(self.path)!r} is no npz of `jpeg` (uint8), `offsets` [N + 1] and `labels` [N]: {reason}"
        )


def _of_folders(folders: dict[Path, list[Path]]) -> Photographs:
    """A folder's class is its number, its WordNet id in ImageNet, or its place among the sorted names."""
    names = [folder.name for folder in folders]
    classes = dict(zip(names, range(len(names)), strict=True))
    if all(name.isdecimal() for name in names):
        classes = {name: int(name) for name in names}
    elif all(WNID.fullmatch(name) for name in names):
        classes = _imagenet(names)
    files = [(file, classes[folder.name]) for folder, images in folders.items() for file in images]
    return Photographs(tuple(file for file, _ in files), tuple(label for _, label in files))


def _imagenet(names: Iterable[str]) -> dict[str, int]:
    info = ImageNetInfo()
    indices = {info.index_to_label_name(index): index for index in range(info.num_classes())}
    unknown = [name for name in names if name not in indices]
    if unknown:
        raise BenchError(f"folder {unknown[0]!r} is no class of ImageNet-1k")
    return {name: indices[name] for name in names}


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())


def _number(photograph: Path) -> int:
    found = NUMBERED.match(photograph.name)
    if found is None:
        raise BenchError(f"{photograph.name!r} does not begin with its class index; expected {LAYOUTS}")
    return int(found[1])


def _opened(file: Any, name: str | None = None) -> Image.Image:
    try:
        with Image.open(file) as image:
            return image.convert("RGB")
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as error:
        raise BenchError(f"cannot read {name or repr(str(file))}: {error}") from None


def _spaced(total: int, count: int | None) -> Indices:
    """`count` of `total` numbers, evenly spaced (sorted folders keep all their classes), or all."""
    count = total if count is None else min(count, total)
    return np.arange(count) * total // count


def _check_labels(labels: Indices, hosted: HostedModel) -> None:
    if labels.min() < 0 or labels.max() >= hosted.classes:
        raise BenchError(
            f"class indices go from {labels.min()} to {labels.max()}, and {hosted.name!r} has {hosted.classes} classes"
        )
