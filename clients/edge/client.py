"""The edge client: predictions at once and here, adaptation by a server when there is one."""

from __future__ import annotations

import functools
import logging
import math
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import httpx
import numpy as np

from normstream.clients.edge import local
from normstream.clients.edge.backoff import Backoff, uniform
from normstream.clients.edge.budget import TokenBucket
from normstream.clients.edge.clock import Clock
from normstream.clients.edge.errors import BadPackage
from normstream.clients.edge.folder import Folder, Identity, new_key
from normstream.clients.edge.link import Link, Unwelcome
from normstream.clients.edge.membership import Membership
from normstream.clients.edge.options import Options
from normstream.clients.edge.package import Package, Parameters
from normstream.clients.edge.prediction import EdgePrediction, entropy, likeliest, probabilities
from normstream.clients.edge.preprocessing import Pixels, Source, crop, decode, normalise
from normstream.clients.edge.runtime import Runtime
from normstream.clients.edge.samples import Candidate, Keeper
from normstream.clients.edge.selection import Selector, Verdict, select
from normstream.clients.edge.spool import Spool
from normstream.clients.edge.status import FILE, SPOOL, Counters, Status
from normstream.clients.edge.update import Update
from normstream.clients.edge.updates import Network, Updater
from normstream.clients.edge.uploads import Uploader
from normstream.clients.edge.worker import Worker
from normstream.clients.errors import ConnectionFailed, InvalidArgument, NormstreamError

logger = logging.getLogger(__name__)

STATE = "state.json"
_WRITE_EVERY_S = 5.0
_CLOSE_WITHIN_S = 10.0
_LATENCIES = 256  # steps whose time is remembered


class _InUse(NamedTuple):
    """A network and the update that it was made of; None with the parameters that the model came with."""

    network: Network
    update: Update | None

    @property
    def version(self) -> str | None:
        return self.update.tag if self.update else None


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
        self._written_at = -math.inf
        self._closed = False
        self._folder = Folder(Path(folder))
        with ExitStack() as resources:  # closed if any of this fails
            resources.enter_context(self._folder.lock())
            identity = _identity(self._folder, Identity(edge, key or "", model, recipe, group))
            self._link = Link(server, transport=transport)
            resources.callback(self._link.close)
            self._membership = Membership(self._link, self._folder, identity, self._clock)
            backoff = functools.partial(Backoff, uniform=uniform)
            self.package = self._find_package(backoff(), sleep)
            self._spool = Spool(self._folder.spool, self.options.spool_bytes)
            resources.callback(self._spool.close)
            self._begin(backoff)
            self._resources = resources.pop_all()

    def _begin(self, backoff: Callable[[], Backoff]) -> None:
        options = self.options
        kept = self._folder.read(STATE)
        self._counters = Counters.of(kept.get("counters", {}))
        self._selector = _selector(kept.get("selector"), self.package.manifest.classes)
        self._link.bytes_up, self._link.bytes_down = self._counters.bytes_up, self._counters.bytes_down
        self._spool.dropped += self._counters.excluded[SPOOL]
        budget = _budget(kept.get("budget"), options)
        self._keeper = Keeper(self._spool, budget, self._counters, options.format, options.quality)
        self._uploader = Uploader(
            self._membership, self._spool, self._counters, self._report, self._clock, backoff(),
            batch=options.batch, linger_s=options.linger_s, report_every_s=options.report_every_s,
        )  # fmt: skip
        self._updater = Updater(
            self._membership, self.package, self._folder, self._counters, self._build, self._swap, self._recent.copy,
            self._clock, backoff(), options.precision, options.wait_s,
        )  # fmt: skip
        self._in_use = _InUse(self._trained(), None)
        if restored := self._updater.restore():
            self._in_use = _InUse(*restored)
        self._workers = {
            name: Worker(name, turn)
            for name, turn in (("keep", self._keep), ("upload", self._uploader.turn), ("update", self._updater.turn))
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
        preprocessing = self.package.manifest.preprocessing
        crops = [crop(decode(image), preprocessing) for image in _listed(images)]
        if not crops:
            return []
        with self._stepping:
            in_use = self._in_use  # an update comes between two steps, never into one
            logits = in_use.network.logits(normalise(crops, preprocessing))
            verdicts, self._selector = select(logits, self._selector, self.options.criteria)
            rows = probabilities(logits)
            uncertain = entropy(rows)
            predictions = [
                self._judge(pixels, taken_at, verdict, row, each, in_use.version)
                for pixels, verdict, row, each in zip(crops, verdicts, rows, uncertain.tolist(), strict=True)
            ]
            self._counters.seen += len(crops)
            self._latencies_ms.append(1000 * (time.perf_counter() - began))
        for prediction in predictions if self._on_prediction else ():
            self._on_prediction(prediction)  # type: ignore[misc] # mypy does not follow the condition
        return predictions

    def _judge(
        self, pixels: Pixels, taken_at: float, verdict: Verdict, row: Any, uncertain: float, version: str | None
    ) -> EdgePrediction:
        self._recent.append((pixels, uncertain))
        sample = None
        if verdict.reason is not None:
            self._counters.excluded[verdict.reason] += 1
        elif self._membership.identity.taught:
            sample = secrets.token_hex(10)
            self._keeper.offer(Candidate(sample, pixels, taken_at, verdict.score))
            self._workers["keep"].wake()
        top = likeliest(row, self.package.labels, self.options.top_k)
        return EdgePrediction(top, uncertain, version, sample, verdict.reason)

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
            problem=self._membership.problem or self._updater.problem,
            at=self._clock.unix_s(),
        )

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
        self._write()
        if all(ended):  # else a thread still uses them, and they end with the process
            self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _find_package(self, backoff: Backoff, sleep: Callable[[float], None]) -> Package:
        """Return the model: the one in the folder, or else the server's, for which a new edge must wait."""
        if fingerprint := self._membership.identity.fingerprint:
            try:
                return Package.cached(self._folder.packages, fingerprint)
            except BadPackage as error:
                logger.warning("the model in the folder cannot be used, and is fetched again: %s", error)
        deadline = self._clock.elapsed_s() + self.options.first_contact_s
        while True:
            try:
                return self._fetch_package()
            except Unwelcome:
                raise
            except NormstreamError as error:
                pause_s = backoff.pause_s()
                if self._clock.elapsed_s() + pause_s > deadline:
                    raise ConnectionFailed(
                        f"this edge has no model yet, and {self.server} gave none: {error}"
                    ) from error
                logger.warning("no model yet, trying again in %.1f s: %s", pause_s, error)
                sleep(pause_s)

    def _fetch_package(self) -> Package:
        hosted = self._membership.register()
        package = Package.fetch(self._link.http, hosted, self._folder.packages)
        self._membership.learn(package.manifest.fingerprint)
        return package

    def _trained(self) -> Network:
        if self.options.local is None:
            return Runtime(self.package, threads=self.options.threads)
        return local.LocalRuntime(self.package, method=self.options.local, threads=self.options.threads)

    def _build(self, parameters: Parameters) -> Network:
        return self._in_use.network.updated(parameters)

    def _swap(self, network: Network, update: Update) -> None:
        with self._stepping:
            running = self._in_use.network
            if isinstance(running, local.LocalRuntime) and isinstance(network, local.LocalRuntime):
                network.running = running.running  # what the edge has seen while the update was tried
            self._in_use = _InUse(network, update)

    def _report(self) -> dict[str, Any]:
        status = self.status()
        return {
            "tag": status.version,
            "seen": status.counters.seen,
            "excluded": status.counters.excluded,
            "uploaded": status.counters.uploaded,
            "rolled_back": status.counters.rolled_back,
            "latency_ms": status.latency_ms.get("p50"),
        }

    def _keep(self) -> float:
        """Take a turn of the thread that keeps things."""
        kept = self._keeper.keep(lambda: not self._closed)
        waiting = len(self._spool)
        if kept and (waiting <= kept or waiting >= self.options.batch):  # the first, whose time runs, or a full batch
            self._workers["upload"].wake()
        due_s = self._written_at + _WRITE_EVERY_S - time.monotonic()
        if due_s > 0:
            return due_s
        self._write()
        return _WRITE_EVERY_S

    def _write(self) -> None:
        self._written_at = time.monotonic()
        status = self.status()
        budget = asdict(self._keeper.budget)
        state = {"counters": asdict(status.counters), "selector": asdict(self._selector), "budget": budget}
        try:
            self._folder.write(STATE, state)
            self._folder.write(FILE, status.plain())
        except OSError as error:  # a full disk must not end the inference
            logger.warning("the state cannot be written: %s", error)


def _identity(folder: Folder, asked: Identity) -> Identity:
    """Return who this edge is; made up and kept when the folder is new.

    Raises:
        InvalidArgument: The folder is another edge's.
    """
    known = folder.identity()
    if known is None:
        known = replace(asked, key=asked.key or new_key())
        folder.save_identity(known)
        return known
    if known.edge != asked.edge or (asked.key and asked.key != known.key):
        raise InvalidArgument(f"folder {folder.path} is of the edge {known.edge!r} and its key; give each edge its own")
    if (known.model, known.recipe, known.group) != (asked.model, asked.recipe, asked.group):
        raise InvalidArgument(
            f"edge {known.edge!r} was registered with model {known.model!r}, recipe {known.recipe!r} and group "
            f"{known.group!r}; give the same, or another id and folder"
        )
    return known


def _selector(kept: Any, classes: int) -> Selector:
    try:
        selector = Selector(**{**kept, "sent": tuple(map(float, kept["sent"]))})
    except (TypeError, KeyError, ValueError):
        return Selector()
    return selector if len(selector.sent) in {0, classes} else Selector()


def _budget(kept: Any, options: Options) -> TokenBucket:
    burst_bytes = options.bytes_per_hour / 6 if options.burst_bytes is None else options.burst_bytes
    empty = TokenBucket(options.bytes_per_hour, burst_bytes)
    try:
        return TokenBucket(**{**asdict(empty), "level": kept["level"], "filled_at": kept["filled_at"]})
    except (TypeError, ValueError, KeyError):
        return empty


def _listed(images: Source | Iterable[Source]) -> list[Source]:
    one = isinstance(images, (str, bytes, np.ndarray)) and not (isinstance(images, np.ndarray) and images.ndim == 4)
    return [images] if one or not isinstance(images, Iterable) else list(images)  # type: ignore[list-item, arg-type]
