"""Networks that adapt their statistics to what they see, in place of `Runtime`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from copy import copy
from typing import NamedTuple, Self

import numpy as np

from normstream.clients.edge.local import EMA, AlphaBN, Running
from normstream.clients.edge.memory import given_back
from normstream.clients.edge.open_network import OpenNetwork
from normstream.clients.edge.pace import Pace
from normstream.clients.edge.package import Floats, Package, Parameters
from normstream.clients.edge.runtime import TOLERANCE, Runtime, references

_BEHIND = 8  # images taken in since the fused network was built, from which on another one is wanted
_EXTRA = 0.5  # of the time of a pass that takes images in: at most so much is what it takes beyond a fused one


class LocalRuntime:
    """A network with its batch norms laid open, whose statistics are not those of its parameters alone.

    Args:
        package: The model, one with batch norms.
        parameters: Of its normalisation layers; left out, those of training.
        threads: For one forward pass; left out, as many as the machine has cores.

    Attributes:
        package: The model.
        parameters: Of its normalisation layers, without what this edge adds.

    Raises:
        BadPackage: The model has no batch norms, or ONNX Runtime cannot load it.
    """

    def __init__(self, package: Package, parameters: Parameters | None, threads: int | None) -> None:
        self.package = package
        self.parameters = package.source if parameters is None else parameters
        self._network = OpenNetwork(package, self.parameters, threads)

    def updated(self, parameters: Parameters) -> Self:
        """Return a runtime with other parameters."""
        other = copy(self)
        other.parameters = parameters
        other._network = self._network.updated(parameters)
        return other

    def probe(self, expected: Floats, tolerance: float = TOLERANCE) -> float:
        """Compare the logits of the package's reference images, without this edge's statistics, with the server's.

        Raises:
            ProbeFailed: They differ.
        """
        return self._network.probe(self.parameters, expected, tolerance)


class AlphaBNRuntime(LocalRuntime):
    """A network that mixes in the statistics of each batch; any number of threads may use it at once.

    Args:
        package: The model, one with batch norms.
        parameters: Of its normalisation layers; left out, those of training.
        method: How the batch's statistics are mixed in.
        threads: For one forward pass; left out, as many as the machine has cores.
    """

    def __init__(
        self,
        package: Package,
        parameters: Parameters | None = None,
        method: AlphaBN | None = None,
        threads: int | None = None,
    ) -> None:
        super().__init__(package, parameters, threads)
        self._method = method or AlphaBN()

    def logits(self, batch: Floats) -> Floats:
        """Run the network on preprocessed images, float32 `[B, 3, H, W]`: logits, `[B, classes]`."""
        return self._network.run(batch, self.parameters, self._method.alpha)[0]


class _Fused(NamedTuple):
    """A fused network, and how many images had been taken in when it was built."""

    runtime: Runtime
    taken_in: int


class EMARuntime(LocalRuntime):
    """A network with running statistics of what it sees.

    Images are taken in as often as the method's share of the time allows. The others are predicted by a fused network
    with the statistics of a moment ago, as fast as those of `Runtime`. Somebody must `fuse` when the network `lags`;
    where nobody does, images are taken in whatever it costs. One thread predicts; others may `fuse` or get an
    `updated` one meanwhile.

    Args:
        package: The model, one with batch norms.
        parameters: Of its normalisation layers; left out, those of training.
        method: How statistics run and are mixed in.
        threads: For one forward pass; left out, as many as the machine has cores.
        elapsed_s: Tells the time; it never jumps.

    Attributes:
        running: The running statistics.
    """

    def __init__(
        self,
        package: Package,
        parameters: Parameters | None = None,
        method: EMA | None = None,
        threads: int | None = None,
        elapsed_s: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(package, parameters, threads)
        self._method = method or EMA()
        self._threads = threads
        self._elapsed_s = elapsed_s
        self._pace = Pace(self._method.share, elapsed_s)
        self.running = Running(self.parameters["mean"], self.parameters["var"])
        self._taken_in = 0  # by choice: while there is no fused network others are too
        self._fused: _Fused | None = None
        self._hurried = False

    def updated(self, parameters: Parameters) -> Self:
        """Return a runtime with other parameters; the running statistics go on.

        It has no fused network yet: that would take as long as all else, and is made when it `lags`.
        """
        other = super().updated(parameters)
        other._fused = None
        other._pace = Pace(self._method.share, self._elapsed_s)  # its trial is no business of this one's
        other._hurried = False
        return other

    def go_on_from(self, other: EMARuntime) -> None:
        """Take over what another one has seen since this one was made of it."""
        self.running, self._taken_in, self._pace = other.running, other._taken_in, other._pace

    def begin_with(self, running: Running) -> None:
        """Take other running statistics."""
        self.running = running
        self._fused = None

    @property
    def lags(self) -> bool:
        """Whether `fuse` would be of use: images come too fast for all to be taken in."""
        return self._hurried and self._behind(self._fused) >= _BEHIND

    def logits(self, batch: Floats) -> Floats:
        """Run the network on preprocessed images, float32 `[B, 3, H, W]`: logits, `[B, classes]`."""
        fused, began = self._fused, self._elapsed_s()
        self._hurried = not self._pace.due
        if not self._hurried:
            logits = self._take_in(batch)
            self._taken_in += len(batch)
            self._pace.spent(_EXTRA * (self._elapsed_s() - began))
            return logits
        if fused is None or self._behind(fused) >= 2 * max(_BEHIND, len(batch)):  # nobody has built another one
            return self._take_in(batch)
        return fused.runtime.logits(batch)

    def _take_in(self, batch: Floats) -> Floats:
        given = self.running.mixed_into(self.parameters, self._method.alpha)
        logits, mean, var = self._network.run(batch, given)
        with np.errstate(over="ignore", invalid="ignore"):
            running = self.running.merge(mean, var, 1 - (1 - self._method.momentum) ** len(batch))
        if np.isfinite(running.mean).all() and np.isfinite(running.var).all():
            self.running = running
        return logits

    def fuse(self) -> None:
        """Build the fused network with the statistics of now, and use it from the next image on.

        Raises:
            BadPackage: ONNX Runtime cannot load the network.
        """
        began = self._elapsed_s()
        taken_in, parameters = self._taken_in, self.running.mixed_into(self.parameters, self._method.alpha)
        with given_back():
            runtime = Runtime(self.package, parameters, self._threads)
            runtime.logits(references(self.package)[0])  # it takes its memory for activations here, not in a step
        self._fused = _Fused(runtime, taken_in)
        self._pace.spent(self._elapsed_s() - began)

    def _behind(self, fused: _Fused | None) -> float:
        """How many images have been taken in since."""
        return math.inf if fused is None else self._taken_in - fused.taken_in
