"""Something that is amiss for a while: one line in the log when it begins, and one when it ends."""

from __future__ import annotations

import logging
from dataclasses import dataclass

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Spell:
    """What is amiss for a while.

    Attributes:
        begins: What is said when it begins, before the reason.
        ends: What is said when it ends.
        reason: Why it is so at the moment; None where it is not.
    """

    begins: str
    ends: str
    reason: str | None = None

    def note(self, reason: str | None) -> None:
        """Note why it is so, or that it is not."""
        if reason and not self.reason:
            logger.warning("%s: %s", self.begins, reason)
        if self.reason and not reason:
            logger.warning("%s", self.ends)
        self.reason = reason
