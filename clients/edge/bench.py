"""How fast an edge is, beside the plain fused ONNX session on the same machine.

The contestants take turns, so that a machine that slows down slows all of them. The plain session has the trained
parameters for good, and is run as one runs a session by hand.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import httpx
import numpy as np
import onnxruntime

from normstream.clients.edge.client import EdgeClient
from normstream.clients.edge.folder import Folder, Identity, new_key
from normstream.clients.edge.link import UPDATE
from normstream.clients.edge.options import Options
from normstream.clients.edge.package import Floats, Package
from normstream.clients.edge.preprocessing import Pixels, crop, decode, normalise
from normstream.clients.edge.runtime import Runtime, by_layer
from normstream.clients.edge.update import Held, Update, encode_full

_PHOTO = (480, 640)  # height and width of what the frames are, as a small camera gives them
_SMALL = 1e-3  # how far made-up updates are from the trained parameters, in parts of them


@dataclass(frozen=True, slots=True)
class Row:
    """A contestant: the median of its turns in images per second, and that as a part of the plain one's."""

    name: str
    images_per_s: float
    share: float


@dataclass(frozen=True, slots=True)
class Result:
    """What was measured.

    Attributes:
        rows: The contestants.
        model: The model.
        batch: Images in one forward pass.
        updates: Updates that were taken into use meanwhile.
        applied_ms: The median of the times that they took in the background.
        lost: Images without a prediction.
    """

    rows: tuple[Row, ...]
    model: str
    batch: int
    updates: int
    applied_ms: float | None
    lost: int

    def plain(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return asdict(self)

    def caption(self) -> str:
        """Return it in a sentence, but for the rows."""
        applied = "" if self.applied_ms is None else f" of {self.applied_ms:.0f} ms (median)"
        return f"{self.model}, batch {self.batch}; {self.updates} updates{applied}; {self.lost} images lost"


def measure(
    package: Package, *, seconds: float, turns: int, batch: int, update_every_s: float, options: Options
) -> Result:
    """Measure a package's contestants in turns.

    Args:
        package: The model.
        seconds: Of each turn.
        turns: Of each contestant.
        batch: Images in one forward pass.
        update_every_s: Between updates.
        options: Of the edge client.
    """
    height, width = _PHOTO
    photos = list(np.random.default_rng(0).integers(0, 256, (max(8, batch), height, width, 3), dtype=np.uint8))
    preprocessing = package.manifest.preprocessing
    session = _plain(package, options.threads)

    def by_hand(images: list[Pixels]) -> Floats:
        crops = [crop(decode(image), preprocessing) for image in images]
        return np.asarray(session.run(["logits"], {"images": normalise(crops, preprocessing)})[0])

    batches = [photos[start : start + batch] for start in range(0, len(photos) - batch + 1, batch)]
    tensors = [normalise([crop(decode(each), preprocessing) for each in images], preprocessing) for images in batches]
    runtime = Runtime(package, threads=options.threads)
    with _edge(package, options, update_every_s) as client:
        contestants: dict[str, tuple[Callable[[Any], Any], list[Any]]] = {
            "plain session, tensors": (lambda tensor: session.run(["logits"], {"images": tensor}), tensors),
            "Runtime, tensors": (runtime.logits, tensors),
            "plain session, images": (by_hand, batches),
            "EdgeClient, images": (client.step, batches),
        }
        speeds: dict[str, list[float]] = {name: [] for name in contestants}
        stepped = 0
        applied_ms: dict[int, float | None] = {}  # by the number of the update
        for turn in range(-1, turns):  # the first warms up
            for name, (run, inputs) in contestants.items():
                images, elapsed_s = _turn(run, inputs, seconds if turn >= 0 else min(1.0, seconds))
                stepped += images if name.startswith("EdgeClient") else 0
                applied_ms[client.status().counters.updates] = client.status().applied_ms
                if turn >= 0:
                    speeds[name].append(images / elapsed_s)
        status = client.status()
        return Result(
            rows=tuple(_rows({name: median(values) for name, values in speeds.items()})),
            model=package.manifest.model,
            batch=batch,
            updates=status.counters.updates,
            applied_ms=median(taken) if (taken := [each for each in applied_ms.values() if each is not None]) else None,
            lost=stepped - status.counters.seen,
        )


def _plain(package: Package, threads: int | None) -> onnxruntime.InferenceSession:
    """A session by hand, with ONNX Runtime's own settings but for the threads."""
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads or 0
    tensors = by_layer(package, package.source)
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(value) for value in tensors.values()]
    settings.add_external_initializers(list(tensors), values)
    return onnxruntime.InferenceSession(package.model, settings, providers=["CPUExecutionProvider"])


def _rows(speeds: dict[str, float]) -> Iterator[Row]:
    for name, speed in speeds.items():
        plain = speeds["plain session, " + name.rpartition(", ")[2]]
        yield Row(name, speed, speed / plain)


def _turn(run: Callable[[Any], Any], inputs: list[Any], seconds: float) -> tuple[int, float]:
    images, began = 0, time.perf_counter()
    while (elapsed_s := time.perf_counter() - began) < seconds:
        for each in inputs:
            run(each)
            images += len(each)
    return images, elapsed_s


@contextmanager
def _edge(package: Package, options: Options, every_s: float) -> Iterator[EdgeClient]:
    """An edge that has its model, and a server within this process."""
    with tempfile.TemporaryDirectory(prefix="normstream-edge-") as place:
        folder = Folder(Path(place))
        fingerprint = package.manifest.fingerprint
        identity = Identity("bench", new_key(), hosted=package.manifest.model, fingerprint=fingerprint)
        folder.save_identity(identity)
        folder.packages.mkdir()
        (folder.packages / fingerprint.removeprefix("sha256:")).symlink_to(package.folder.resolve())
        cloud = _Cloud(package, identity, every_s)
        transport = httpx.MockTransport(cloud.answer)
        with EdgeClient("http://bench", "bench", folder.path, options=options, transport=transport) as client:
            try:
                yield client
            finally:
                cloud.stopped.set()


class _Cloud:
    """Takes every sample, and now and then has an update: the trained parameters, changed so little that it is good."""

    def __init__(self, package: Package, identity: Identity, every_s: float) -> None:
        self.stopped = threading.Event()
        self._package = package
        self._identity = identity
        self._every_s = every_s
        self._number = 0

    def answer(self, request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            return httpx.Response(202, json={})
        if self.stopped.wait(self._every_s):
            return httpx.Response(204)
        self._number += 1
        body, signature = self._update()
        return httpx.Response(200, content=body, headers={"Content-Type": UPDATE, "Normstream-Signature": signature})

    def _update(self) -> tuple[bytes, str]:
        source = self._package.source
        random = np.random.default_rng(self._number)
        offsets = {
            name: (_SMALL * random.standard_normal(len(value)) * value).astype("<f2") for name, value in source.items()
        }
        parameters = {name: value + offsets[name].astype(np.float32) for name, value in source.items()}
        reference = normalise(self._package.reference, self._package.manifest.preprocessing)
        probe = Runtime(self._package, parameters, threads=1).logits(reference)
        held = Held(f"bench.{self._number}", "float16", b"".join(offset.tobytes() for offset in offsets.values()))
        update = Update(self._identity.edge, held, time.time(), probe, parameters)
        return encode_full(update, self._identity.key, self._package)
