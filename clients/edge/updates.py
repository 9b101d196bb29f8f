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
from normstream.clients.edge.errors import (
    CorruptUpdate,
    EdgeError,
    ForeignUpdate,
    OldUpdate,
    OtherWeights,
    ProbeFailed,
    StaleBase,
    UpdateRefused,
)
from normstream.clients.edge.folder import Folder
from normstream.clients.edge.link import LinkError, Offer, Unreachable, Unwanted, Unwelcome, Withheld
from normstream.clients.edge.membership import Membership
from normstream.clients.edge.memory import given_back
from normstream.clients.edge.package import Floats, Package, Parameters
from normstream.clients.edge.prediction import Likelihoods
from normstream.clients.edge.preprocessing import normalise
from normstream.clients.edge.runtime import TOLERANCE
from normstream.clients.edge.spell import Spell
from normstream.clients.edge.status import Counters
from normstream.clients.edge.update import Held, Update, decode, encode_full

logger = logging.getLogger(__name__)

WORSE = 0.2  # in parts of ln(classes): by how much the mean entropy may rise
TRIED = 8  # of the last images, spread over them all: a video's latest frames are alike
_POLL_S = 5.0  # between two questions, where the server answers without having waited


class Network(Protocol):
    """What runs one version of the parameters: `Runtime`, `AlphaBNRuntime` or `EMARuntime`."""

    package: Package

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
    reported. What is rolled back is still held, so that it is not fetched again and the next delta can build on it. It
    is not tried again either, nor after a restart, when there are no last images that would speak against it.

    Attributes:
        membership: Makes the calls.
        package: The model.
        folder: Where the last good update is kept.
        counters: Counts what becomes of updates.
        renew: Fetches the package of the weights that the server hosts now.
        build: Makes a network of a package and parameters.
        swap: Takes a network into use between two steps.
        recent: Returns the last images and what was predicted of them.
        clock: Tells the time.
        backoff: The pauses after failures.
        precision: Of the parameters as they travel, "float16" or "float32".
        wait_s: How long the server may wait for a new version before it answers that there is none.
        held: The newest version that came whole.
        tried: The newest version that was taken into use or rolled back.
        rolled_back: The version that was rolled back last, since the last good one; None when none was.
        problem: What was wrong with the last update; None when nothing was.
        withheld: Whether the server has no update that it could send.
        applied_ms: How long the last update took, from its bytes to its use.
    """

    membership: Membership
    package: Package
    folder: Folder
    counters: Counters
    renew: Callable[[], Package]
    build: Callable[[Package, Parameters], Network]
    swap: Callable[[Network, Update], None]
    recent: Callable[[], Recent]
    clock: Clock = field(default_factory=Clock)
    backoff: Backoff = field(default_factory=Backoff)
    precision: str = "float16"
    wait_s: float = 25.0
    held: Held | None = None
    tried: str | None = None
    rolled_back: str | None = None
    problem: str | None = None
    withheld: Spell = field(
        default_factory=lambda: Spell(
            "the server has no update for this edge until somebody acts there",
            "the server has updates for this edge again",
        )
    )
    applied_ms: float | None = None
    _tried: bytes | None = None  # the offsets of that version; None where they are not known any more

    def turn(self) -> float:
        """Ask once, and take what comes; return after how many seconds to ask again."""
        began = self.clock.elapsed_s()
        since = self.held.tag if self.held else None
        link = self.membership.link
        try:
            offer = self.membership.call(lambda identity: link.ask(identity, since, self.precision, self.wait_s))
            self.withheld.note(None)
            news = offer is not None and self.take(offer)
        except Unwelcome:
            return math.inf
        except Withheld as error:
            self.withheld.note(str(error))
            return self.backoff.pause_s()
        except (StaleBase, Unwanted) as error:
            self._refuse(error)
            self.held = None  # ask for the whole
            return self.backoff.pause_s()
        except UpdateRefused as error:
            self.counters.rejected += 1
            self._refuse(error)
            if isinstance(error, CorruptUpdate):  # the base may be what two sides call by one name
                self.held = None
            return self.backoff.pause_s()
        except LinkError as error:
            return self.backoff.pause_s(error.retry_after_s if isinstance(error, Unreachable) else 0.0)
        self.backoff.succeed()
        waited = self.wait_s > 0 and self.clock.elapsed_s() - began > 0.9 * self.wait_s
        return 0.0 if news or waited else _POLL_S

    def take(self, offer: Offer) -> bool:
        """Take an update into use, or roll it back; False when it is the one that was tried last.

        One that is for other weights brings the edge to those: the server hosts them now under the model's name.

        Raises:
            UpdateRefused: It must not be used.
            LinkError: The package of other weights could not be fetched.
        """
        began = time.perf_counter()
        package = self.package
        try:
            update = self._decoded(offer, package)
        except OtherWeights as error:
            package = self._other(error)
            update = self._decoded(offer, package)
        self.held = update.held
        if update.tag == self.rolled_back:
            self.problem = f"version {update.tag} was rolled back, and is not tried again"
            return False
        if update.tag == self.tried and self._tried in {None, update.held.offsets}:
            return False  # the whole of it was asked for, or somebody on the wire sends it once more
        try:
            network = self._proved(update, package)
        except EdgeError as error:
            self.counters.rolled_back += 1
            self._refuse(error)
            self.tried, self._tried = update.tag, update.held.offsets
            self._remember(update.tag)
            return True
        self.counters.updates += 1
        self.rolled_back = self.problem = None
        self.package = package
        self.swap(network, update)
        self.tried, self._tried = update.tag, update.held.offsets
        self.applied_ms = 1000 * (time.perf_counter() - began)
        logger.info("version %s in use after %.0f ms", update.tag, self.applied_ms)
        self._keep(update)
        return True

    def _decoded(self, offer: Offer, package: Package) -> Update:
        identity = self.membership.identity
        update = decode(offer.body, offer.signature, identity.key, package, self.held)
        if update.edge != identity.edge:
            raise ForeignUpdate(f"the update is for the edge {update.edge}")
        if self.tried is not None and _precedes(update.tag, self.tried):
            raise OldUpdate(
                f"version {update.tag} is older than {self.tried}, which has been tried; "
                "if the server was set back to an old state, delete the edge's stream there"
            )
        return update

    def _other(self, error: OtherWeights) -> Package:
        """Return the package that an update wants in place of the one that the edge has."""
        logger.warning("%s; fetching the package of what the server hosts now", error)
        try:
            package = self.renew()
        except LinkError as failure:
            self.problem = f"{error}, and their package cannot be fetched now: {failure}"
            raise
        if package.manifest.fingerprint != error.fingerprint:
            raise ForeignUpdate(
                f"{error}, and the server's package is of {package.manifest.fingerprint}; "
                "if this goes on, delete the edge's stream at the server"
            )
        return package

    def _keep(self, update: Update) -> None:
        try:
            self.membership.learn(self.package.manifest.fingerprint)
            self.folder.save_update(*encode_full(update, self.membership.identity.key, self.package))
        except OSError as error:  # it runs all the same
            self.problem = f"the update cannot be kept: {error}"
            logger.warning("%s", self.problem)

    def _remember(self, tag: str) -> None:
        self.rolled_back = tag
        try:
            self.folder.save_rolled_back(tag)
        except OSError as error:  # it is tried once more after the next start
            logger.warning("that %s was rolled back cannot be kept: %s", tag, error)

    def restore(self) -> tuple[Network, Update] | None:
        """Return the last good update for a start without network; None when there is none that still proves good."""
        self.tried = self.rolled_back = self.folder.rolled_back()
        kept = self.folder.update()
        if kept is None:
            return None
        try:
            update = decode(*kept, self.membership.identity.key, self.package)
            network = self._proved(update, self.package)
        except EdgeError as error:
            self.counters.rejected += 1
            self._refuse(error)
            return None
        self.held = update.held
        if self.rolled_back is None or _precedes(self.rolled_back, update.tag):
            self.tried, self._tried = update.tag, update.held.offsets
        return network, update

    def _proved(self, update: Update, package: Package) -> Network:
        with given_back():  # the first passes take what a session keeps for its activations
            network = self.build(package, update.parameters)
            network.probe(update.probe)
        if package is self.package:  # with other weights it was another network that saw the last images
            self._compare(network)
        return network

    def _compare(self, network: Network) -> None:
        """Refuse a network that is much less certain of the last images than what was predicted of them.

        Each image costs a forward pass, which frames wait for: where half of them leave no doubt, half are tried.
        """
        recent = list(self.recent())
        recent = recent[:: max(1, math.ceil(len(recent) / TRIED))]
        most = math.log(self.package.manifest.classes)  # where nothing is said, or no number
        allowed = WORSE * most
        rises: list[float] = []
        for part in (recent[::2], recent[1::2]):
            rises += [self._entropy(network, crop) - (before if before <= most else most) for crop, before in part]
            if not rises or np.mean(rises) <= allowed / 2:
                return
        rise = float(np.mean(rises))
        if not rise <= allowed:  # NaN is not
            raise ProbeFailed(
                f"the mean entropy of {len(recent)} of the last images would rise by {rise:.2f}; "
                f"a rise of {allowed:.2f} is allowed"
            )

    def _entropy(self, network: Network, crop: NDArray[np.uint8]) -> float:
        logits = network.logits(normalise([crop], self.package.manifest.preprocessing))
        return float(Likelihoods.of(logits).entropies[0])

    def _refuse(self, error: Exception) -> None:
        self.problem = f"update refused: {error}"
        logger.warning("%s", self.problem)


def _precedes(tag: str, other: str) -> bool:
    """Return whether a version came before another; of streams that were made apart none does."""
    generation, _, number = tag.rpartition(".")
    other_generation, _, other_number = other.rpartition(".")
    if generation != other_generation or not (number.isdecimal() and other_number.isdecimal()):
        return False
    return int(number) < int(other_number)
