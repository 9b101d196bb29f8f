"""How an edge stands with its server: known or not yet, welcome or not."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from normstream.clients.edge.clock import Clock
from normstream.clients.edge.folder import Folder, Identity
from normstream.clients.edge.link import Full, Link, LinkError, Unknown, Unreachable, Unwanted, Unwelcome, Withheld

T = TypeVar("T")
logger = logging.getLogger(__name__)


class Membership:
    """Makes an edge's calls, and registers it when the server does not know it.

    Attributes:
        identity: Who the edge is.
        problem: Why the server could not be used at the last call; None when it could.
        halted: Whether the server refused the edge for good, so that no more calls are made.
        last_contact_at: When the server last answered, in unix seconds.
    """

    def __init__(self, link: Link, folder: Folder, identity: Identity, clock: Clock) -> None:
        self.link = link
        self.identity = identity
        self.problem: str | None = None
        self.halted = False
        self.last_contact_at: float | None = None
        self._folder = folder
        self._clock = clock
        self._known = identity.hosted is not None
        self._registering = threading.Lock()

    def call(self, ask: Callable[[Identity], T]) -> T:
        """Make a call.

        Raises:
            LinkError: It did not succeed; where the server cannot be used, `problem` says why.
        """
        if self.halted:
            raise Unwelcome(self.problem)
        try:
            self._register()
            answer = ask(self.identity)
        except Unknown as error:
            self._known = False
            self._note(error)
            raise Unreachable(f"the server has forgotten this edge, which registers again: {error}") from error
        except (Unwanted, Withheld, Full):  # answers all the same, of which the caller is to make something
            self._reached(None)
            raise
        except LinkError as error:
            self._note(error)
            raise
        self._reached(None)
        return answer

    def register(self) -> str:
        """Make the edge known to the server, unless it is; return the name of its model there.

        Raises:
            LinkError: It did not succeed, and `problem` says why.
        """
        return self.call(lambda _: str(self.identity.hosted))

    def learn(self, fingerprint: str) -> None:
        """Keep which weights the edge has."""
        if fingerprint != self.identity.fingerprint:
            self._keep(replace(self.identity, fingerprint=fingerprint))

    def _register(self) -> None:
        with self._registering:
            if self._known:
                return
            hosted, taught = self.link.register(self.identity)
            self._keep(replace(self.identity, hosted=hosted, taught=taught))
            self._known = True
        logger.info("registered at the server as %s", self.identity.edge)

    def _keep(self, identity: Identity) -> None:
        self._folder.save_identity(identity)
        self.identity = identity

    def _note(self, error: LinkError) -> None:
        if self.link.closing:
            return
        problem = str(error)
        if isinstance(error, Unwelcome):
            if not self.halted:
                logger.error("the server refuses this edge, which goes on without it: %s", problem)
            self.halted = True
        elif problem != self.problem:
            logger.warning("the server cannot be used now: %s", problem)
        self.problem = problem
        if isinstance(error, Unwelcome | Unknown):
            self._reached(problem)

    def _reached(self, problem: str | None) -> None:
        if self.problem and not problem:
            logger.warning("the server answers again")
        self.problem = problem
        self.last_contact_at = self._clock.unix_s()
