"""What can be wrong with what a server sends to an edge, as one tree.

EdgeError (a NormstreamError)
├── BadImage             what should be an image cannot be read
├── BadPackage           a package is incomplete, damaged, or of a form that this client does not know
├── UpdateRefused        an update that must not be used
│   ├── BadSignature     it is not signed with the edge's key
│   ├── CorruptUpdate    it is signed, but is not what it says
│   ├── ForeignUpdate    it is for another edge or another model
│   │   └── OtherWeights it is for weights that this edge does not have: fetch the package
│   ├── OldUpdate        it is of an earlier version than one that was tried: it was held back, or sent again
│   └── StaleBase        it is the difference to a version that is not held: ask for the whole
└── ProbeFailed          with an update's parameters the logits are not those that the server expects
"""
# ruff: noqa: N818 - the names are those of what is wrong

from __future__ import annotations

from normstream.clients.errors import NormstreamError


class EdgeError(NormstreamError):
    """Anything that the edge's parts raise on purpose."""


class BadImage(EdgeError):
    """What should be an image cannot be read."""


class BadPackage(EdgeError):
    """A package is incomplete, damaged, or of a form that this client does not know."""


class UpdateRefused(EdgeError):
    """An update that must not be used; what runs goes on."""


class BadSignature(UpdateRefused):
    """It is not signed with this edge's key, or was changed on its way."""


class CorruptUpdate(UpdateRefused):
    """It is signed, but is not what it says."""


class ForeignUpdate(UpdateRefused):
    """It is for another edge or another model."""


class OtherWeights(ForeignUpdate):
    """It is for weights that this edge does not have: fetch the package.

    Attributes:
        fingerprint: Of those weights.
    """

    def __init__(self, fingerprint: str, own: str) -> None:
        super().__init__(f"the update is for the weights {fingerprint:.80}; this edge has {own}")
        self.fingerprint = fingerprint


class OldUpdate(UpdateRefused):
    """It is of an earlier version than one that was tried: somebody held it back, or sends it again."""


class StaleBase(UpdateRefused):
    """It is the difference to a version that is not held: ask for the whole update."""


class ProbeFailed(EdgeError):
    """The logits of the reference images are not those that the server expects."""
