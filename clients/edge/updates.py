"""Updates on their way from the server into use."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from normstream.clients.edge.backoff import Backoff
from normstream.clients.edge.clock import Clock
from normstream.clients.edge.errors import EdgeError, ForeignUpdate, ProbeFailed, StaleBase, UpdateRefused
from normstream.clients.edge.folder import Folder
from normstream.clients.edge.link import LinkError, Offer, Unreachable, Unwanted, Unwelcome
from normstream.clients.edge.membership import Membership
from normstream.clients.edge.package import Floats, Package, Parameters
from normstream.clients.edge.prediction import entropies
from normstream.clients.edge.preprocessing import normalise
from normstream.clients.edge.runtime import TOLERANCE
from normstream.clients.edge.status import Counters
from normstream.clients.edge.update import Held, Update, decode, encode_full

logger = logging.getLogger(__name__)

WORSE = 0.2  # in parts of ln(classes): by how much the mean entropy may rise
TRIED = 8  # of the last images, spread over them all: a video's latest frames are alike, and each costs a forward pass
_POLL_S = 5.0  # between two questions, where the server answers without having waited


class Network(Protocol):
    """What runs one version of the parameters: `Runtime` or `LocalRuntime`."""

    def updated(self, parameters: Parameters) -> Network:
        """Return one that runs other parameters."""

    def logits(self, batch: Floats) -> Floats:
        """Run it on preprocessed images."""

    def probe(self, expected: Floats, tolerance: float = TOLERANCE) -> float:
        """Compare its logits of the reference images with those that the server expects."""


Recent: TypeAlias = Sequence[tuple[NDArray[np.uint8], float]]
"""Crops of the last images, uint8 `[H, W, 3]`, and the entropy of what was predicted of each."""


@dataclass(slots=True)
class Updater:
    """Asks for new versions of the parameters, and takes one into use when it has proved good.

    A second network is built with it beside the one that runs, and must give the logits that the server computed. If
    it is much less certain of the last images than what was predicted of them, it is rolled back: dropped, counted and
    reported. What is rolled back is still held, so that it is not fetched again and the next delta can build on it.

    Attributes:
        membership: Makes the calls.
        package: The model.
        folder: Where the last good update is kept.
        counters: Counts what becomes of updates.
        build: Makes a network of parameters.
        swap: Takes a network into use between two steps.
        recent: Returns the last images and what was predicted of them.
        clock: Tells the time.
        backoff: The pauses after failures.
        precision: Of the parameters as they travel, "float16" or "float32".
        wait_s: How long the server may wait for a new version before it answers that there is none.
        held: The newest version that came whole.
        tried: The newest version that was taken into use or rolled back.
        problem: What was wrong with the last update; None when nothing was.
        applied_ms: How long the last update took, from its bytes to its use.
    """

    membership: Membership
    package: Package
    folder: Folder
    counters: Counters
    build: Callable[[Parameters], Network]
    swap: Callable[[Network, Update], None]
    recent: Callable[[], Recent]
    clock: Clock = field(default_factory=Clock)
    backoff: Backoff = field(default_factory=Backoff)
    precision: str = "float16"
    wait_s: float = 25.0
    held: Held | None = None
    tried: str | None = None
    problem: str | None = None
    applied_ms: float | None = None

    def turn(self) -> float:
        """Ask once, and take what comes; return after how many seconds to ask again."""
        began = self.clock.elapsed_s()
        since = self.held.tag if self.held else None
        link = self.membership.link
        try:
            offer = self.membership.call(lambda identity: link.ask(identity, since, self.precision, self.wait_s))
            if offer is not None:
                self.take(offer)
        except Unwelcome:
            return math.inf
        except (StaleBase, Unwanted) as error:  # ask for the whole
            self._refuse(error)
            self.held = None
            return self.backoff.pause_s()
        except UpdateRefused as error:
            self.counters.rejected += 1
            self._refuse(error)
            return self.backoff.pause_s()
        except LinkError as error:
            return self.backoff.pause_s(error.retry_after_s if isinstance(error, Unreachable) else 0.0)
        self.backoff.succeed()
        waited = self.wait_s > 0 and self.clock.elapsed_s() - began > 0.9 * self.wait_s
        return 0.0 if offer or waited else _POLL_S

    def take(self, offer: Offer) -> None:
        """Take an update into use, or roll it back.

        Raises:
            UpdateRefused: It must not be used.
        """
        began = time.perf_counter()
        identity = self.membership.identity
        update = decode(offer.body, offer.signature, identity.key, self.package, self.held)
        if update.edge != identity.edge:
            raise ForeignUpdate(f"the update is for the edge {update.edge}")
        self.held = update.held
        try:
            network = self._proved(update)
        except EdgeError as error:
            self.counters.rolled_back += 1
            self._refuse(error)
            self.tried = update.tag
            return
        self.counters.updates += 1
        self.problem = None
        self.swap(network, update)
        self.tried = update.tag
        self.applied_ms = 1000 * (time.perf_counter() - began)
        logger.info("version %s in use after %.0f ms", update.tag, self.applied_ms)
        self._keep(update)

    def _keep(self, update: Update) -> None:
        try:
            self.folder.save_update(*encode_full(update, self.membership.identity.key, self.package))
        except OSError as error:  # it runs all the same
            self.problem = f"the update cannot be kept: {error}"
            logger.warning("%s", self.problem)

    def restore(self) -> tuple[Network, Update] | None:
        """Return the last good update for a start without network; None when there is none that still proves good."""
        kept = self.folder.update()
        if kept is None:
            return None
        try:
            update = decode(*kept, self.membership.identity.key, self.package)
            network = self._proved(update)
        except EdgeError as error:
            self.counters.rejected += 1
            self._refuse(error)
            return None
        self.held = update.held
        return network, update

    def _proved(self, update: Update) -> Network:
        network = self.build(update.parameters)
        network.probe(update.probe)
        self._compare(network)
        return network

    def _compare(self, network: Network) -> None:
        """Refuse a network that is much less certain of the last images than what was predicted of them."""
        recent = list(self.recent())
        if not recent:
            return
        recent = recent[:: math.ceil(len(recent) / TRIED)]
        before = float(np.mean([entropy for _, entropy in recent]))
        preprocessing = self.package.manifest.preprocessing
        # One at a time, so that no frame waits long for a core.
        logits = [network.logits(normalise([crop], preprocessing)) for crop, _ in recent]
        after = float(entropies(np.concatenate(logits)).mean())
        allowed = WORSE * math.log(self.package.manifest.classes)
        if not after - before <= allowed:  # NaN is not
            raise ProbeFailed(
                f"the mean entropy of {len(recent)} of the last images would be {after:.2f} in place of {before:.2f}; "
                f"a rise of {allowed:.2f} is allowed"
            )

    def _refuse(self, error: Exception) -> None:
        self.problem = f"update refused: {error}"
        logger.warning("%s", self.problem)
