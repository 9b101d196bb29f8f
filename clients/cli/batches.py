"""Many items, a request's worth at a time, with a bar on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import track

from normstream.clients.errors import NormstreamError

Item = TypeVar("Item")
Answer = TypeVar("Answer")


def in_batches(
    ask: Callable[[Sequence[Item]], Answer], items: Sequence[Item], size: int, doing: str, done: str
) -> Iterator[Answer]:
    """Yield the answers to one batch after another.

    Args:
        ask: Sends one batch.
        items: All there are.
        size: Items of a batch.
        doing: What the bar says.
        done: What an error says of the items before it, as in "images had been predicted".
    """
    console = Console(stderr=True)
    starts = range(0, len(items), size)
    for start in track(starts, doing, console=console, transient=True, disable=not console.is_terminal):
        try:
            yield ask(items[start : start + size])
        except NormstreamError as error:
            error.add_note(f"{start} of {len(items)} {done} before")
            raise
