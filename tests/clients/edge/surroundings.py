"""An edge client's surroundings: photographs, and a server's updates."""

import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from cloud import Cloud, sign, update_body

from normstream.clients.edge.client import EdgeClient
from normstream.clients.edge.package import Package
from normstream.clients.edge.preprocessing import normalise, preprocess
from normstream.clients.edge.runtime import Runtime
from normstream.clients.edge.selection import Criteria

KEY = "k" * 43
ALL = Criteria(unreliable=100, uninformative=0, redundant=2)  # everything is worth sending
NONE = Criteria(unreliable=1e-9)
SOON = {"linger_s": 0.0, "wait_s": 0.2, "report_every_s": 1.0}


def photo(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8)


def until(check: Callable[[], Any], limit_s: float = 20.0) -> Any:
    deadline = time.monotonic() + limit_s
    while not (answer := check()):
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.01)
    return answer


class Publisher:
    """Makes updates as the server does, from how far the parameters lie from the package's own."""

    def __init__(self, server: Cloud, package: Package, edge: str = "gate") -> None:
        self.server = server
        self.package = package
        self.edge = edge
        self.manifest = json.loads((package.folder / "manifest.json").read_bytes())
        self.tag = "a.0"
        self.plain: bytes | None = None

    @property
    def key(self) -> str:
        return self.server.edges[self.edge]["key"]

    def parameters(self, seed: int, size: float = 0.05) -> dict[str, np.ndarray]:
        random = np.random.default_rng(seed)
        source = self.package.source
        offsets = {name: random.normal(0, size, len(value)).astype(np.float16) for name, value in source.items()}
        parameters = {name: source[name] + offset.astype(np.float32) for name, offset in offsets.items()}
        self.offsets = offsets
        return parameters | {"var": np.maximum(parameters["var"], 0)}

    def publish(self, seed: int, *, delta: bool = False, key: str = "", probe: float = 0.0, **changes: Any) -> dict:
        parameters = changes.pop("parameters", None) or self.parameters(seed)
        reference = normalise(self.package.reference, self.package.manifest.preprocessing)
        logits = Runtime(self.package, parameters).logits(reference) + np.float32(probe)
        base = (self.tag, self.plain) if delta else None
        self.tag = f"a.{seed}"
        body, self.plain = update_body(
            self.manifest,
            self.offsets,
            logits,
            **{"edge": self.edge, "tag": self.tag, "precision": "float16", **changes},
            base=base,
        )
        self.server.publish(self.tag, body, sign(key or self.key, body))
        return parameters


def logits(package: Package, parameters: Any, image: np.ndarray) -> np.ndarray:
    return Runtime(package, parameters).logits(preprocess([image], package.manifest.preprocessing))


def answers(client: EdgeClient, parameters: Any, image: np.ndarray) -> bool:
    """Whether the client answers as a network with these parameters."""
    row = logits(client.package, parameters, image)[0].astype(np.float64)
    expected = np.exp(row - row.max())
    got = {each.index: each.probability for each in client.step([image])[0].top}
    return np.allclose([got[i] for i in sorted(got)], (expected / expected.sum())[sorted(got)], atol=1e-4)
