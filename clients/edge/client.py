"""The edge client: predictions at once and here, adaptation by a server when there is one."""

from __future__ import annotations

import functools
import math
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import numpy as np

from normstream.clients.edge import enrolment
from normstream.clients.edge.backoff import Backoff, uniform
from normstream.clients.edge.clock import Clock
from normstream.clients.edge.folder import Folder, Identity
from normstream.clients.edge.in_use import InUse, network
from normstream.clients.edge.link import Link
from normstream.clients.edge.membership import Membership
from normstream.clients.edge.notes import Diary, Notes
from normstream.clients.edge.options import Options
from normstream.clients.edge.package import Package, Parameters
from normstream.clients.edge.prediction import EdgePrediction, Likelihoods, likeliest
from normstream.clients.edge.preprocessing import Pixels, Source, crop, decode, normalise
from normstream.clients.edge.samples import Candidate, Keeper
from normstream.clients.edge.selection import Selector, Verdict, select
from normstream.clients.edge.spool import Spool
from normstream.clients.edge.status import SPOOL, Status
from normstream.clients.edge.update import Update
from normstream.clients.edge.updates import Network, Updater
from normstream.clients.edge.uploads import Uploader
from normstream.clients.edge.worker import Worker

_CLOSE_WITHIN_S = 10.0
_LATENCIES = 256  # steps whose time is remembered


class EdgeClient:
    """Predicts images on this machine with a model that a server adapts.

    A step never waits for the network and never fails for want of it. A new edge must reach its server once, to get
    the model; from then on all that it needs is in its folder, and it starts without network as adapted as it was.

    Args:
        server: The server's address.
        edge: The edge's id: 1 to 100 letters, digits, ".", "_" or "-", not beginning with a dot.
        folder: Where everything is kept; each edge has its own.
        model: A hosted model; the server's default one when None.
        recipe: How the model is to be adapted: the name of a preset, or a recipe in full.
        group: Edges of one group share their adaptation.
        key: The secret of 32 to 128 characters that the edge shares with its server; made up when None.
        options: How it behaves.
        on_prediction: Is called with each prediction, in the thread that steps.
        clock: Tells the time.
        sleep: Waits; only before the first contact.
        uniform: Draws a number between two others, for the pauses.
        transport: What carries the requests in place of the network.

    Raises:
        InvalidArgument: The folder is another edge's, in use, or cannot be written.
        ConnectionFailed: A new edge could not reach its server in time.
        Unwelcome: The server refuses the edge, which has no model yet.

    Example:
        >>> with EdgeClient("http://cloud:8000", "gate-3", "edge") as edge:  # doctest: +SKIP
        ...     edge.step(["zebra.jpg"])[0].top[0].label
        'zebra'
    """

    def __init__(
        self,
        server: str,
        edge: str,
        folder: str | Path,
        *,
        model: str | None = None,
        recipe: str | Mapping[str, Any] = "cema",
        group: str | None = None,
        key: str | None = None,
        options: Options | None = None,
        on_prediction: Callable[[EdgePrediction], None] | None = None,
        clock: Clock | None = None,
        sleep: Callable[[float], None] = time.sleep,
        uniform: Callable[[float, float], float] = uniform,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.options = options or Options()
        self.server = server
        self._clock = clock or Clock()
        self._on_prediction = on_prediction
        self._stepping = threading.Lock()
        self._latencies_ms: deque[float] = deque(maxlen=_LATENCIES)
        self._recent: deque[tuple[Pixels, float]] = deque(maxlen=self.options.recent)
        self._closed = False
        self._folder = Folder(Path(folder))
        self._diary = Diary(self._folder)
        with ExitStack() as resources:  # closed if any of this fails
            resources.enter_context(self._folder.lock())
            identity = enrolment.identity(self._folder, Identity(edge, key or "", model, recipe, group))
            self._link = Link(server, transport=transport)
            resources.callback(self._link.close)
            self._membership = Membership(self._link, self._folder, identity, self._clock)
            backoff = functools.partial(Backoff, uniform=uniform)
            package = enrolment.first_package(
                self._membership, self._folder, self.options.first_contact_s, backoff(), self._clock, sleep
            )
            self._spool = Spool(self._folder.spool, self.options.spool_bytes)
            resources.callback(self._spool.close)
            self._begin(package, backoff)
            self._resources = resources.pop_all()

    def _begin(self, package: Package, backoff: Callable[[], Backoff]) -> None:
        options = self.options
        self._counters, self._selector, budget, uplink = Notes.read(self._folder, package.manifest.classes, options)
        self._link.bytes_up, self._link.bytes_down = self._counters.bytes_up, self._counters.bytes_down
        self._spool.dropped += self._counters.excluded[SPOOL]
        self._keeper = Keeper(self._spool, budget, self._counters, options.format, options.quality)
        self._uploader = Uploader(
            self._membership, self._spool, self._counters, lambda: self.status().report(),
            self._clock, backoff(), uplink,
            batch=options.batch, linger_s=options.linger_s, report_every_s=options.report_every_s,
        )  # fmt: skip
        self._updater = Updater(
            self._membership, package, self._folder, self._counters,
            functools.partial(enrolment.fetched_package, self._membership, self._folder),
            self._build, self._swap, self._recent.copy,
            self._clock, backoff(), options.precision, options.wait_s,
        )  # fmt: skip
        self._in_use = InUse(network(package, options, self._clock), None)
        if restored := self._updater.restore():
            self._in_use = self._in_use.replaced(*restored)
        self._in_use.resume(self._folder)
        self._workers = {
            name: Worker(name, turn)
            for name, turn in (
                ("keep", self._keep),
                ("upload", self._uploader.turn),
                ("update", self._updater.turn),
                ("fuse", self._fuse),
            )
        }
        for worker in self._workers.values():
            worker.start()

    def step(self, images: Source | Iterable[Source]) -> list[EdgePrediction]:
        """Predict images, and put aside those that are worth uploading.

        Args:
            images: A file's path or content, a Pillow image or a uint8 array `[H, W, 3]`, or several of those.

        Raises:
            BadImage: One of them cannot be read; none is predicted then.
        """
        began = time.perf_counter()
        taken_at = self._clock.unix_s()
        in_use = self._in_use  # an update comes between two steps, never into one
        preprocessing = in_use.package.manifest.preprocessing
        crops = [crop(decode(image), preprocessing) for image in _listed(images)]
        if not crops:
            return []
        with self._stepping:
            if self._in_use.package is in_use.package:  # else other weights came while the images were prepared
                in_use = self._in_use
            statistics = in_use.statistics
            logits = in_use.network.logits(normalise(crops, preprocessing))
            if in_use.statistics is not statistics:
                self._counters.taken_in += len(crops)
            if in_use.lags:
                self._workers["fuse"].wake()
            said = Likelihoods.of(logits)
            verdicts, self._selector = select(said, self._selector, self.options.criteria)
            predictions = [
                self._judge(in_use, pixels, taken_at, verdict, row, uncertain)
                for pixels, verdict, row, uncertain in zip(
                    crops, verdicts, said.probabilities, said.entropies.tolist(), strict=True
                )
            ]
            self._counters.seen += len(crops)
            self._latencies_ms.append(1000 * (time.perf_counter() - began))
        for prediction in predictions if self._on_prediction else ():
            self._on_prediction(prediction)  # type: ignore[misc] # mypy does not follow the condition
        return predictions

    def _judge(
        self, in_use: InUse, pixels: Pixels, taken_at: float, verdict: Verdict, row: Any, uncertain: float
    ) -> EdgePrediction:
        if in_use.package is self.package:
            self._recent.append((pixels, uncertain))
        sample = None
        if verdict.reason is not None:
            self._counters.excluded[verdict.reason] += 1
        elif self._membership.identity.taught:
            sample = secrets.token_hex(10)
            self._keeper.offer(Candidate(sample, pixels, taken_at, verdict.score))
            self._workers["keep"].wake()
        top = likeliest(row, in_use.package.labels, self.options.top_k)
        return EdgePrediction(top, uncertain, in_use.version, sample, verdict.reason)

    def status(self) -> Status:
        """Return how the edge is doing."""
        update = self._in_use.update
        latencies = np.asarray(self._latencies_ms.copy())
        self._counters.bytes_up, self._counters.bytes_down = self._link.bytes_up, self._link.bytes_down
        return Status(
            edge=self._membership.identity.edge,
            server=self.server,
            model=self.package.manifest.model,
            fingerprint=self.package.manifest.fingerprint,
            version=update.tag if update else None,
            version_created_at=update.created_at if update else None,
            counters=replace(self._counters, excluded=dict(self._counters.excluded)),
            waiting=len(self._spool),
            waiting_bytes=self._spool.waiting_bytes,
            latency_ms={f"p{q}": round(float(np.percentile(latencies, q)), 3) for q in (50, 95) if len(latencies)},
            applied_ms=self._updater.applied_ms,
            last_contact_at=self._membership.last_contact_at,
            problem=self._problem(),
            at=self._clock.unix_s(),
        )

    def _problem(self) -> str | None:
        withheld, full = self._updater.withheld.reason, self._uploader.full.reason
        return self._membership.problem or self._spool.problem or withheld or self._updater.problem or full

    @property
    def package(self) -> Package:
        """The model."""
        return self._in_use.package

    @property
    def tried(self) -> str | None:
        """The newest version that came and was taken into use or rolled back; None before the first."""
        return self._updater.tried

    def drain(self, limit_s: float) -> bool:
        """Upload all that waits, within a time; return whether it was enough."""
        deadline = time.monotonic() + limit_s
        linger_s, self._uploader.linger_s = self._uploader.linger_s, 0.0
        try:
            while self._keeper.queue.unfinished_tasks or len(self._spool):
                if time.monotonic() > deadline or self._membership.halted:
                    return False
                for name in ("keep", "upload"):
                    self._workers[name].wake()
                time.sleep(0.02)
        finally:
            self._uploader.linger_s = linger_s
        return True

    def close(self) -> None:
        """End the work in the background, and write down what must not be forgotten."""
        if self._closed:
            return
        self._closed = True
        for worker in self._workers.values():
            worker.stop()
        self._link.abort()
        ended = [worker.join(_CLOSE_WITHIN_S) for worker in self._workers.values()]
        self._keeper.keep()
        self._write(last=True)
        if all(ended):  # else a thread still uses them, and they end with the process
            self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _build(self, package: Package, parameters: Parameters) -> Network:
        if package is self.package:
            return self._in_use.network.updated(parameters)
        return network(package, self.options, self._clock, parameters)

    def _swap(self, network: Network, update: Update) -> None:
        with self._stepping:
            if network.package is not self.package:  # what was noted of the images was another network's word
                self._selector = Selector()
                self._recent.clear()
            self._in_use = self._in_use.replaced(network, update)

    def _keep(self) -> float:
        """Take a turn of the thread that keeps things."""
        kept = self._keeper.keep(lambda: not self._closed)
        waiting = len(self._spool)
        if kept and (waiting <= kept or waiting >= self.options.batch):  # the first, whose time runs, or a full batch
            self._workers["upload"].wake()
        if self._diary.due_s <= 0:
            self._write()
        return self._diary.due_s

    def _fuse(self) -> float:
        """Take a turn of the thread that keeps up with the edge's own statistics; it is woken when it is due."""
        self._in_use.fuse()
        return math.inf

    def _write(self, *, last: bool = False) -> None:
        status = self.status()
        notes = Notes(status.counters, self._selector, self._keeper.budget, self._uploader.uplink)
        self._diary.write(notes, status, self._in_use, last=last)


def _listed(images: Source | Iterable[Source]) -> list[Source]:
    one = isinstance(images, (str, bytes, np.ndarray)) and not (isinstance(images, np.ndarray) and images.ndim == 4)
    return [images] if one or not isinstance(images, Iterable) else list(images)  # type: ignore[list-item, arg-type]
