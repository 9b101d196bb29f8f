"""The version of the parameters that an edge predicts with."""

from __future__ import annotations

import logging
from typing import NamedTuple

from normstream.clients.edge.clock import Clock
from normstream.clients.edge.errors import BadPackage
from normstream.clients.edge.folder import Folder
from normstream.clients.edge.local import EMA, AlphaBN, Running
from normstream.clients.edge.local_runtime import AlphaBNRuntime, EMARuntime
from normstream.clients.edge.options import Options
from normstream.clients.edge.package import Package, Parameters
from normstream.clients.edge.runtime import Runtime
from normstream.clients.edge.update import Update
from normstream.clients.edge.updates import Network

logger = logging.getLogger(__name__)


class InUse(NamedTuple):
    """A network and the update that it was made of; None with the parameters that the model came with."""

    network: Network
    update: Update | None

    @property
    def package(self) -> Package:
        """The model."""
        return self.network.package

    @property
    def version(self) -> str | None:
        """Names the parameters."""
        return self.update.tag if self.update else None

    @property
    def _own(self) -> EMARuntime | None:
        """The network, where it keeps statistics of its own."""
        return self.network if isinstance(self.network, EMARuntime) else None

    @property
    def statistics(self) -> Running | None:
        """What it has seen, where that changes its answers."""
        return self._own.running if self._own else None

    @property
    def lags(self) -> bool:
        """Whether `fuse` would be of use."""
        return self._own is not None and self._own.lags

    def fuse(self) -> None:
        """Let images be predicted fast with what was seen until now.

        Raises:
            BadPackage: ONNX Runtime cannot load the network.
        """
        if self._own and self._own.lags:
            self._own.fuse()

    def resume(self, folder: Folder) -> None:
        """Go on with the running statistics of the folder, if it keeps such and they fit."""
        content = folder.statistics()
        if self._own and content is not None:
            try:
                self._own.begin_with(Running.unpacked(content, self.package))
            except BadPackage as error:
                logger.warning("they begin anew: %s", error)

    def replaced(self, network: Network, update: Update) -> InUse:
        """Return what follows; what the edge has seen while the update was tried is not lost."""
        other = InUse(network, update)
        if self._own and other._own and other.package is self.package:
            other._own.go_on_from(self._own)
        return other


def network(package: Package, options: Options, clock: Clock, parameters: Parameters | None = None) -> Network:
    """Make the network that these options ask for; left out, the parameters are those of training."""
    method = options.local
    if method == "auto":
        method = None if package.adaptive is None else EMA()
    if method is None:
        return Runtime(package, parameters, options.threads)
    if isinstance(method, AlphaBN):
        return AlphaBNRuntime(package, parameters, method, options.threads)
    return EMARuntime(package, parameters, method, options.threads, clock.elapsed_s)
