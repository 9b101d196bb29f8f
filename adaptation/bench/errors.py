"""What people can mend: `normstream bench` shows it in one line and ends with exit code 2."""

from collections.abc import Iterator
from contextlib import contextmanager


class BenchError(ValueError):
    """An input of the benchmark is wrong; the message says which, what was seen and what to do."""


@contextmanager
def given_by(option: str) -> Iterator[None]:
    """Say which option brought what is wrong."""
    try:
        yield
    except BenchError as error:
        raise BenchError(f"{option}: {error}") from None
