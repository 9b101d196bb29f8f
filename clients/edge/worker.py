"""A thread that does something in turns."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

logger = logging.getLogger(__name__)

_AFTER_A_FAULT_S = 10.0


class Worker:
    """Takes turns until it is stopped; a turn returns after how many seconds the next one is due.

    A turn that fails in a way that nobody has thought of is written to the log and taken again 10 s later, however
    often the worker is woken before: what goes on in the background must never end the inference, nor fill the log.
    """

    def __init__(self, name: str, turn: Callable[[], float]) -> None:
        self._turn = turn
        self._woken = threading.Event()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"normstream-{name}", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def wake(self) -> None:
        """Let the next turn come at once."""
        self._woken.set()

    def stop(self) -> None:
        """Let no further turn begin."""
        self._stopped.set()
        self._woken.set()

    def join(self, limit_s: float) -> bool:
        """Wait for the last turn to end; return whether it has."""
        if self._thread.ident is not None:
            self._thread.join(limit_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                pause_s = self._turn()
            except Exception:
                logger.exception("%s failed; its next turn is in %g s", self._thread.name, _AFTER_A_FAULT_S)
                self._stopped.wait(_AFTER_A_FAULT_S)
            else:
                self._woken.wait(min(pause_s, threading.TIMEOUT_MAX))
                self._woken.clear()
