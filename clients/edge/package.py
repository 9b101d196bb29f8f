"""The package of a model: the files that run it without torch, fetched once and kept by fingerprint."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self, TypeAlias
from zipfile import BadZipFile

import httpx
import numpy as np
from numpy.typing import NDArray

from normstream.clients.edge.answers import LARGEST_JSON_BYTES, UNPACKED, read
from normstream.clients.edge.errors import BadPackage
from normstream.clients.edge.preprocessing import Preprocessing
from normstream.clients.errors import ConnectionFailed, UnexpectedAnswer, api_error

FORMAT = "normstream.package/1"
MANIFEST = "manifest.json"
STATISTICS = ("mean", "var")

Floats: TypeAlias = NDArray[np.float32]
Parameters: TypeAlias = Mapping[str, Floats]
"""`weight` and `bias` of all layers side by side, and `mean` and `var` of the batch norms, each float32 `[C_total]`."""

_FINGERPRINT = re.compile(r"sha256:([0-9a-f]{64})")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_MAX_MANIFEST_BYTES = 16 * 2**20


@dataclass(frozen=True, slots=True)
class Layer:
    """A normalisation layer: its path in the network, its kind, its channels."""

    path: str
    kind: str
    channels: int
    batch_norm: bool

    @property
    def tensors(self) -> tuple[str, ...]:
        """The names of what it is given from outside."""
        return ("weight", "bias", *STATISTICS) if self.batch_norm else ("weight", "bias")


@dataclass(frozen=True, slots=True)
class File:
    """A file of the package: its size, and the digest of its content in hexadecimal."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What is in a package."""

    model: str
    fingerprint: str
    architecture: str
    classes: int
    labels: tuple[str, ...] | None
    preprocessing: Preprocessing
    layers: tuple[Layer, ...]
    files: Mapping[str, File]

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """Read a manifest.

        Raises:
            BadPackage: It is none, or of a form that this client does not know.
        """
        try:
            manifest = cls._of(json.loads(content))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadPackage(f"the package's manifest cannot be read: {error!r}") from error
        if not {"model.onnx", "norm.npz", "reference.npy"} <= manifest.files.keys():
            raise BadPackage(f"the package has only the files {', '.join(manifest.files)}")
        return manifest

    @classmethod
    def _of(cls, content: dict[str, Any]) -> Self:
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']!r}; this client knows {FORMAT!r}")
        labels = content["labels"]
        return cls(
            model=str(content["model"]),
            fingerprint=_matching(_FINGERPRINT, content["fingerprint"]),
            architecture=str(content["architecture"]),
            classes=int(content["classes"]),
            labels=None if labels is None else tuple(map(str, labels)),
            preprocessing=Preprocessing.parse(content["preprocessing"]),
            layers=tuple(
                Layer(str(layer["path"]), str(layer["kind"]), int(layer["channels"]), bool(layer["batch_norm"]))
                for layer in content["layers"]
            ),
            files={
                _matching(_FILE, name): File(int(file["bytes"]), _matching(_DIGEST, file["sha256"]))
                for name, file in content["files"].items()
            },
        )

    def channels(self, tensor: str) -> int:
        """Return how many values `weight`, `bias`, `mean` or `var` has over all layers."""
        return sum(layer.channels for layer in self.layers if tensor in layer.tensors)

    @property
    def tensors(self) -> tuple[str, ...]:
        """The names of the parameters: without batch norms `weight` and `bias` alone."""
        return ("weight", "bias", *STATISTICS) if any(layer.batch_norm for layer in self.layers) else ("weight", "bias")


@dataclass(frozen=True)
class Package:
    """A complete package on disk."""

    folder: Path
    manifest: Manifest

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Read the package in a folder, and check every file of it.

        Raises:
            BadPackage: A file is missing or damaged.
        """
        try:
            package = cls(folder, Manifest.parse((folder / MANIFEST).read_bytes()))
        except OSError as error:
            raise BadPackage(f"there is no package in {folder}: {error.strerror}") from error
        for name, file in package.manifest.files.items():
            if not _intact(folder / name, file):
                raise BadPackage(f"{folder / name} is missing or damaged")
        return package

    @classmethod
    def cached(cls, cache: Path, fingerprint: str) -> Self:
        """Open a package fetched earlier, for a start without network.

        Raises:
            BadPackage: It is not there, or damaged.
        """
        if not _FINGERPRINT.fullmatch(fingerprint):
            raise BadPackage(f"{fingerprint!r:.100} is no fingerprint")
        package = cls.open(_folder(cache, fingerprint))
        if package.manifest.fingerprint != fingerprint:
            raise BadPackage(f"the package in {package.folder} is of another model")
        return package

    @classmethod
    def fetch(cls, http: httpx.Client, model: str, cache: Path) -> Self:
        """Return the package of a model, of which only what is not in the cache is fetched.

        A file that breaks off is left as `FILE.part`, and the next call goes on from there.

        Args:
            http: A client whose base URL is the server's.
            model: The name under which the server hosts it.
            cache: The folder of all packages.

        Raises:
            ConnectionFailed: There was no answer, or it broke off; call again.
            ApiError: The server refused.
            BadPackage: What the server sends is not what its manifest says.
        """
        path = f"/v1/models/{model}/package"
        content = _get(http, path)
        manifest = Manifest.parse(content)
        folder = _folder(cache, manifest.fingerprint)
        folder.mkdir(parents=True, exist_ok=True)
        for name, file in manifest.files.items():
            if not _intact(folder / name, file):
                _download(http, f"{path}/{name}", folder / name, file)
        part = folder / f"{MANIFEST}.part"
        part.write_bytes(content)
        part.replace(folder / MANIFEST)  # last: a folder with a manifest is complete
        return cls(folder, manifest)

    @property
    def model(self) -> Path:
        """The network, its normalisation tensors left out."""
        return self.folder / "model.onnx"

    @property
    def adaptive(self) -> Path | None:
        """The network that mixes its batch's statistics in; None without batch norms."""
        return self.folder / "adaptive.onnx" if "adaptive.onnx" in self.manifest.files else None

    @property
    def labels(self) -> tuple[str, ...] | None:
        """The names of the classes."""
        return self.manifest.labels

    @cached_property
    def source(self) -> Parameters:
        """The parameters with which the model was trained.

        Raises:
            BadPackage: They do not fit the manifest's layers.
        """
        try:
            with np.load(self.folder / "norm.npz", allow_pickle=False) as file:
                source = {name: np.asarray(file[name], np.float32) for name in self.manifest.tensors}
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise BadPackage(f"norm.npz cannot be read: {error}") from error
        for name, value in source.items():
            if value.shape != (self.manifest.channels(name),):
                raise BadPackage(f"{name} in norm.npz is {value.shape}; the layers have {self.manifest.channels(name)}")
        return source

    @cached_property
    def reference(self) -> NDArray[np.uint8]:
        """Two crops, uint8 `[2, H, W, 3]`, whose logits come with every update."""
        reference: NDArray[np.uint8] = np.load(self.folder / "reference.npy", allow_pickle=False)
        return reference


def _matching(pattern: re.Pattern[str], text: Any) -> str:
    if not pattern.fullmatch(text):
        raise ValueError(f"{text!r:.100} is not of the form {pattern.pattern}")
    return str(text)


def _folder(cache: Path, fingerprint: str) -> Path:
    return cache / fingerprint.removeprefix("sha256:")


def _intact(path: Path, file: File) -> bool:
    if not path.is_file() or path.stat().st_size != file.bytes:
        return False
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest() == file.sha256


def _get(http: httpx.Client, path: str) -> bytes:
    try:
        with http.stream("GET", path, headers=UNPACKED) as streamed:
            response = read(streamed, _MAX_MANIFEST_BYTES)
    except httpx.RequestError as error:
        raise ConnectionFailed(f"{http.base_url}{path}: {error or type(error).__name__}") from error
    if response.status_code != 200:
        raise api_error(response)
    return response.content


def _download(http: httpx.Client, url: str, path: Path, file: File) -> None:
    part = path.with_name(f"{path.name}.part")
    resumed = part.exists()
    _fetch_rest(http, url, part, file)
    if not _intact(part, file) and resumed:  # perhaps what was there already was of another version
        part.unlink()
        _fetch_rest(http, url, part, file)
    if not _intact(part, file):
        part.unlink()
        raise BadPackage(f"{url} is not the file that the manifest names")
    part.replace(path)


def _fetch_rest(http: httpx.Client, url: str, part: Path, file: File) -> None:
    """Append to `part` what it lacks; where the server starts over, so does the file."""
    had = part.stat().st_size if part.exists() else 0
    if had >= file.bytes:
        return
    headers = UNPACKED | ({"Range": f"bytes={had}-"} if had else {})  # unpacked bytes could not be resumed
    try:
        with http.stream("GET", url, headers=headers) as response:
            if response.status_code not in {200, 206}:
                raise api_error(read(response, LARGEST_JSON_BYTES))
            resumes = response.status_code == 206
            if resumes and not response.headers.get("Content-Range", "").startswith(f"bytes {had}-"):
                raise UnexpectedAnswer(f"{url} answered with another range than the one asked for")
            _write(response, part, had if resumes else 0, file.bytes)
    except httpx.RequestError as error:
        raise ConnectionFailed(f"{url}: {error or type(error).__name__}") from error


def _write(response: httpx.Response, part: Path, start: int, size: int) -> None:
    with part.open("r+b" if start else "wb") as target:
        target.seek(start)
        for chunk in response.iter_raw():
            target.write(chunk)
            if target.tell() > size:
                raise BadPackage(f"{response.url} is longer than the {size} bytes that the manifest names")
