"""The terminal, as both command lines write to it."""

from rich.console import Console


def terminal(*, stderr: bool = False) -> Console:
    """Return it, as wide as it is now; labels and file names are no markup, whatever brackets and colons they have."""
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)
