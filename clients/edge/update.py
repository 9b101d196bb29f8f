"""Updates as they travel: from signed bytes to parameters.

A header of JSON in one line, then a zlib stream: the logits of the reference images, float32, and the offsets of the
parameters from those of training, side by side, in the header's precision. All numbers are little-endian. A delta has
the offsets' bytes XORed with those of the version that the edge said it holds.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from normstream.clients.edge.errors import BadSignature, CorruptUpdate, OtherWeights, StaleBase
from normstream.clients.edge.package import Floats, Package, Parameters

FORMAT = "normstream.update/1"
_Precision: TypeAlias = np.dtype[np.float16] | np.dtype[np.float32]
_PRECISIONS: dict[str, _Precision] = {"float16": np.dtype("<f2"), "float32": np.dtype("<f4")}
_SIGNATURE = "hmac-sha256="
_MAX_HEADER_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Held:
    """A version that the edge has, as the base of a delta."""

    tag: str
    precision: str
    offsets: bytes


@dataclass(frozen=True, slots=True, eq=False)
class Update:
    """One version of the parameters.

    Attributes:
        edge: For which edge it was made.
        held: Its tag, precision and offsets: what the next delta builds on.
        created_at: When, in unix seconds by the server's clock.
        probe: What the logits of the package's reference images must be, [2, classes].
        parameters: What the network is to be run with.
    """

    edge: str
    held: Held
    created_at: float
    probe: Floats
    parameters: Parameters

    @property
    def tag(self) -> str:
        """Names this version."""
        return self.held.tag


@dataclass(frozen=True, slots=True)
class _Header:
    edge: str
    fingerprint: str
    tag: str
    base: str | None
    codec: str
    precision: str
    tensors: dict[str, int]
    digest: str
    created_at: float
    probe: tuple[int, int]

    @classmethod
    def parse(cls, line: bytes) -> Self:
        try:
            content = json.loads(line)
            if content["format"] != FORMAT:
                raise ValueError(f"its format is {content['format']!r:.100}; this client knows {FORMAT!r}")
            return cls._of(content)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CorruptUpdate(f"the update's header cannot be read: {error!r:.200}") from error

    @classmethod
    def _of(cls, content: Mapping[str, Any]) -> Self:
        rows, classes = content["probe"]
        header = cls(
            probe=(int(rows), int(classes)),
            created_at=float(content["created_at"]),
            tensors={str(name): int(channels) for name, channels in content["tensors"].items()},
            base=None if content["base"] is None else str(content["base"]),
            **{name: str(content[name]) for name in ("edge", "fingerprint", "tag", "codec", "precision", "digest")},
        )
        if header.codec not in {"full", "delta"} or header.precision not in _PRECISIONS:
            raise ValueError(f"codec {header.codec!r:.100}, precision {header.precision!r:.100}")
        if not math.isfinite(header.created_at):
            raise ValueError("created_at is no time")
        return header


def decode(body: bytes, signature: str | None, key: str, package: Package, held: Held | None = None) -> Update:
    """Verify an update and rebuild its parameters; nothing of it is read before its signature has been verified.

    Args:
        body: The update.
        signature: The header `Normstream-Signature` that came with it.
        key: The edge's key.
        package: The model that the edge runs.
        held: The version that the edge has, for a delta.

    Raises:
        UpdateRefused: See the tree of errors.
    """
    _verify(body, signature, key)
    line, newline, _ = body[:_MAX_HEADER_BYTES].partition(b"\n")
    if not newline:
        raise CorruptUpdate("the update has no header")
    header = _Header.parse(line)
    _check_model(header, package)
    dtype = _PRECISIONS[header.precision]
    probe_bytes = 4 * math.prod(header.probe)
    payload = _unpacked(body[len(line) + 1 :], probe_bytes + dtype.itemsize * sum(header.tensors.values()))
    offsets = _offsets(header, payload[probe_bytes:], held)
    if header.digest != f"sha256:{hashlib.sha256(offsets).hexdigest()}":
        raise CorruptUpdate("the update's parameters do not have the digest that it names")
    probe = np.frombuffer(payload, "<f4", math.prod(header.probe)).astype(np.float32).reshape(header.probe)
    parameters = _parameters(header, np.frombuffer(offsets, dtype), package.source)
    if not all(np.isfinite(value).all() for value in (probe, *parameters.values())):
        raise CorruptUpdate("the update holds NaN or infinity")
    return Update(header.edge, Held(header.tag, header.precision, offsets), header.created_at, probe, parameters)


def encode_full(update: Update, key: str, package: Package) -> tuple[bytes, str]:
    """Return an update and its signature in the form in which `decode` needs no other version: to be kept on disk."""
    header = {
        "format": FORMAT,
        "edge": update.edge,
        "model": package.manifest.model,
        "fingerprint": package.manifest.fingerprint,
        "tag": update.tag,
        "base": None,
        "codec": "full",
        "precision": update.held.precision,
        "tensors": {name: package.manifest.channels(name) for name in package.manifest.tensors},
        "digest": f"sha256:{hashlib.sha256(update.held.offsets).hexdigest()}",
        "created_at": update.created_at,
        "probe": list(update.probe.shape),
    }
    payload = zlib.compress(update.probe.astype("<f4").tobytes() + update.held.offsets)
    body = json.dumps(header).encode() + b"\n" + payload
    return body, sign(body, key)


def sign(body: bytes, key: str) -> str:
    """Return the signature of an update."""
    return f"{_SIGNATURE}{hmac.new(key.encode(), body, hashlib.sha256).hexdigest()}"


def _verify(body: bytes, signature: str | None, key: str) -> None:
    if not signature:
        raise BadSignature("the update is not signed")
    if not hmac.compare_digest(signature.encode(), sign(body, key).encode()):
        raise BadSignature("the update's signature is not of this edge's key")


def _check_model(header: _Header, package: Package) -> None:
    manifest = package.manifest
    if header.fingerprint != manifest.fingerprint:
        raise OtherWeights(header.fingerprint, manifest.fingerprint)
    if header.tensors != {name: manifest.channels(name) for name in manifest.tensors}:
        raise CorruptUpdate(f"the update's tensors {header.tensors!r:.200} are not the model's")
    if header.probe != (len(package.reference), manifest.classes):
        raise CorruptUpdate(f"the update has logits {list(header.probe)}; the model has {manifest.classes} classes")


def _unpacked(packed: bytes, size: int) -> bytes:
    """Decompress exactly `size` bytes: what unpacks to more is never unpacked."""
    stream = zlib.decompressobj()
    try:
        payload = stream.decompress(packed, size)
        rest = stream.decompress(stream.unconsumed_tail, 1)
    except zlib.error as error:
        raise CorruptUpdate(f"the update cannot be unpacked: {error}") from error
    if len(payload) != size or rest or not stream.eof or stream.unused_data:
        raise CorruptUpdate(f"the update does not unpack to {size} bytes")
    return payload


def _offsets(header: _Header, content: bytes, held: Held | None) -> bytes:
    if header.codec == "full":
        return content
    if held is None or (header.base, header.precision) != (held.tag, held.precision):
        has = "none" if held is None else f"{held.tag} in {held.precision}"
        raise StaleBase(f"the update builds on {header.base} in {header.precision}; this edge holds {has}")
    if len(held.offsets) != len(content):
        raise CorruptUpdate("the update and the version that it builds on differ in size")
    return (np.frombuffer(content, np.uint8) ^ np.frombuffer(held.offsets, np.uint8)).tobytes()


def _parameters(header: _Header, offsets: NDArray[np.floating[Any]], source: Parameters) -> dict[str, Floats]:
    ends = np.cumsum(list(header.tensors.values()))[:-1]
    pieces = zip(header.tensors, np.split(offsets.astype(np.float32), ends), strict=True)
    parameters = {name: source[name] + piece for name, piece in pieces}
    if "var" in parameters:
        parameters["var"] = np.maximum(parameters["var"], 0)
    return parameters
