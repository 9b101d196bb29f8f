"""What goes to an edge over the wire: a version of its parameters, whole or as the difference from one it has.

A body is a line of JSON, then a payload compressed by zlib: the logits that the edge must get on the package's
reference images, float32, and the *offsets*, how far the parameters lie from the package's own. All numbers are little
endian. Whatever way a version travels, every edge computes the same parameters from it, to the bit.
"""

import hashlib
import hmac
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

FORMAT = "normstream.update/1"

Parameters = Mapping[str, NDArray[np.float32]]
"""By name: `weight`, `bias` and where there are batch norms `mean`, `var`, all layers side by side."""


class Precision(StrEnum):
    """Of the offsets."""

    FLOAT16 = "float16"
    FLOAT32 = "float32"

    @property
    def dtype(self) -> np.dtype[Any]:
        """As NumPy has it."""
        return np.dtype(self.value).newbyteorder("<")


@dataclass(frozen=True, slots=True, eq=False)
class Release:
    """One version of a stream's parameters, as edges get it.

    Attributes:
        tag: Names the version.
        precision: Of the offsets.
        tensors: How long each is, by name, in the order in which they stand in the offsets.
        created_at: When the version came to be, unix seconds.
        offsets: The parameters less the package's own.
        probe: What the network with these parameters answers to the reference images, [N, classes].
    """

    tag: str
    precision: Precision
    tensors: dict[str, int]
    created_at: float
    offsets: bytes = field(repr=False)
    probe: NDArray[np.float32]

    def pack(self) -> bytes:
        """To bytes that the store keeps."""
        header = {
            "tag": self.tag,
            "precision": self.precision,
            "tensors": self.tensors,
            "created_at": self.created_at,
            "probe": self.probe.shape,
        }
        return json.dumps(header).encode() + b"\n" + self.probe.astype("<f4").tobytes() + self.offsets

    @classmethod
    def unpack(cls, packed: bytes) -> Self:
        """From bytes that `pack` made."""
        line, _, rest = packed.partition(b"\n")
        header = json.loads(line)
        shape = header.pop("probe")
        count = int(np.prod(shape))
        probe = np.frombuffer(rest, "<f4", count).reshape(shape)
        header["precision"] = Precision(header["precision"])
        return cls(**header, probe=probe, offsets=rest[4 * count :])


def offsets(parameters: Parameters, source: Parameters, precision: Precision) -> tuple[bytes, Precision]:
    """How far parameters lie from the source's, side by side in the source's order, and how precisely.

    What is too far for 16 bits is given in 32, whatever was asked for.

    Raises:
        ValueError: when a parameter is not finite.
    """
    exact = np.concatenate([parameters[name] - source[name] for name in source])
    if not np.isfinite(exact).all():
        raise ValueError("a parameter is not finite")
    if precision is Precision.FLOAT16 and np.abs(exact).max(initial=0.0) > np.finfo(np.float16).max:
        precision = Precision.FLOAT32
    return exact.astype(precision.dtype).tobytes(), precision


def rebuilt(source: Parameters, offset_bytes: bytes, precision: Precision) -> dict[str, NDArray[np.float32]]:
    """The parameters that every edge computes from the offsets; variances are not negative."""
    whole = np.frombuffer(offset_bytes, precision.dtype).astype(np.float32)
    parameters, start = {}, 0
    for name, values in source.items():
        parameters[name] = values + whole[start : start + len(values)]
        start += len(values)
    if "var" in parameters:
        parameters["var"] = parameters["var"].clip(min=0)
    return parameters


def body(release: Release, base: Release | None, *, edge: str, model: str, fingerprint: str) -> bytes:
    """The update for an edge that has the release `base`, or is not known to have any."""
    payload = zlib.compress(_payload(release, release.offsets))
    codec, known = "full", None
    if base is not None and base.precision is release.precision and base.tensors == release.tensors:
        # As bits: exact, and what did not change is a run of zeros.
        difference = np.bitwise_xor(np.frombuffer(release.offsets, "u1"), np.frombuffer(base.offsets, "u1"))
        smaller = zlib.compress(_payload(release, difference.tobytes()))
        if len(smaller) < len(payload):
            payload, codec, known = smaller, "delta", base.tag
    header = {
        "format": FORMAT,
        "edge": edge,
        "model": model,
        "fingerprint": fingerprint,
        "tag": release.tag,
        "base": known,
        "codec": codec,
        "precision": release.precision,
        "tensors": release.tensors,
        "digest": f"sha256:{hashlib.sha256(release.offsets).hexdigest()}",
        "created_at": release.created_at,
        "probe": list(release.probe.shape),
    }
    return json.dumps(header).encode() + b"\n" + payload


def signature(key: str, content: bytes) -> str:
    """The value of the header `Normstream-Signature`."""
    return f"hmac-sha256={hmac.new(key.encode(), content, hashlib.sha256).hexdigest()}"


def _payload(release: Release, offset_bytes: bytes) -> bytes:
    return release.probe.astype("<f4").tobytes() + offset_bytes
