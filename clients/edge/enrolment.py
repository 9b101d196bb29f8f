"""How an edge comes to its identity and to its model."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from normstream.clients.edge.backoff import Backoff
from normstream.clients.edge.clock import Clock
from normstream.clients.edge.errors import BadPackage
from normstream.clients.edge.folder import Folder, Identity, new_key
from normstream.clients.edge.link import Unreachable, Unwelcome
from normstream.clients.edge.membership import Membership
from normstream.clients.edge.package import Package
from normstream.clients.errors import ConnectionFailed, InvalidArgument, NormstreamError

logger = logging.getLogger(__name__)


def identity(folder: Folder, asked: Identity) -> Identity:
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


def first_package(
    membership: Membership, folder: Folder, patience_s: float, backoff: Backoff, clock: Clock,
    sleep: Callable[[float], None],
) -> Package:  # fmt: skip
    """Return the model to start with: the one in the folder, or else the server's, for which a new edge must wait.

    Raises:
        ConnectionFailed: The server gave none within `patience_s`.
        Unwelcome: The server refuses the edge.
    """
    if fingerprint := membership.identity.fingerprint:
        try:
            return Package.cached(folder.packages, fingerprint)
        except BadPackage as error:
            logger.warning("the model in the folder cannot be used, and is fetched again: %s", error)
    deadline = clock.elapsed_s() + patience_s
    while True:
        try:
            package = fetched_package(membership, folder)
        except Unwelcome:
            raise
        except NormstreamError as error:
            pause_s = backoff.pause_s()
            if clock.elapsed_s() + pause_s > deadline:
                raise ConnectionFailed(
                    f"this edge has no model yet, and {membership.link.server} gave none: {error}"
                ) from error
            logger.warning("no model yet, trying again in %.1f s: %s", pause_s, error)
            sleep(pause_s)
        else:
            membership.learn(package.manifest.fingerprint)
            return package


def fetched_package(membership: Membership, folder: Folder) -> Package:
    """Return the package of the weights that the server hosts now; what of it is in the folder is not fetched.

    Raises:
        LinkError: The server could not be asked, or what it sent is no package.
    """
    hosted = membership.register()
    try:
        return Package.fetch(membership.link.http, hosted, folder.packages)
    except NormstreamError as error:
        raise Unreachable(str(error)) from error
