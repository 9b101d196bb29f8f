"""How an edge client behaves."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from normstream.clients.edge import local
from normstream.clients.edge.samples import Format
from normstream.clients.edge.selection import Criteria
from normstream.clients.errors import InvalidArgument


@dataclass(frozen=True, slots=True)
class Options:
    """How an edge client behaves; every bound that is broken is named.

    Attributes:
        top_k: Classes in a prediction.
        threads: For one forward pass; None takes as many as the machine has cores.
        local: Adaptation to the edge's own images, without a server: `local.AlphaBN()` or `local.EMA()`; None is off.
            "auto" is `EMA()` where the model has batch norms.
        criteria: The bounds of what is worth uploading.
        bytes_per_hour: How many bytes of samples may be kept to be uploaded, and sent; infinity is no bound.
        burst_bytes: How many may be uploaded at once after a quiet time; None takes a sixth of an hour's, or 256 KiB
            where that is more, but no more than an hour's. A larger sample goes alone and is paid off afterwards.
        format: How samples are encoded, "jpeg" or "webp".
        quality: Of that, from 1 to 100.
        batch: Samples in one upload at most.
        linger_s: How long a sample may wait for others.
        report_every_s: How long the server may hear nothing of the edge.
        spool_bytes: How many bytes of samples may wait on the disk.
        precision: Of parameters as they travel, "float16" or "float32".
        wait_s: How long a question for new parameters may stay open at the server.
        recent: How many of the last images are remembered, to try updates on some of them.
        first_contact_s: How long a new edge, which has no model yet, tries to reach its server.
    """

    top_k: int = 5
    threads: int | None = None
    local: local.Choice = "auto"
    criteria: Criteria = field(default_factory=Criteria)
    bytes_per_hour: float = math.inf
    burst_bytes: float | None = None
    format: Format = "jpeg"
    quality: int = 85
    batch: int = 16
    linger_s: float = 10.0
    report_every_s: float = 60.0
    spool_bytes: int = 64 * 2**20
    precision: str = "float16"
    wait_s: float = 25.0
    recent: int = 64
    first_contact_s: float = 60.0

    def __post_init__(self) -> None:
        bounds = {
            "top_k": (1, 1000),
            "quality": (1, 100),
            "batch": (1, 64),
            "linger_s": (0, 3600),
            "report_every_s": (1, 3600),
            "spool_bytes": (2**16, 2**40),
            "wait_s": (0, 60),
            "recent": (0, 1024),
            "bytes_per_hour": (0, math.inf),
            "first_contact_s": (0, math.inf),
        }
        for name, (least, most) in bounds.items():
            if not least <= getattr(self, name) <= most:
                raise InvalidArgument(f"{name} is {getattr(self, name)}; give {least} to {most}")
        if self.local not in ("auto", None) and not isinstance(self.local, local.AlphaBN | local.EMA):
            raise InvalidArgument(f'local is {self.local!r}; give AlphaBN(…), EMA(…), None or "auto"')
        choices = {"format": ("jpeg", "webp"), "precision": ("float16", "float32")}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise InvalidArgument(f"{name} is {getattr(self, name)!r}; give {' or '.join(known)}")
