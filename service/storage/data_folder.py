"""The data folder of a service: a private place on disk, held by one process at a time."""

import fcntl
import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# The kernel's limit is 104 bytes on macOS and 108 on Linux, terminator included.
MAX_SOCKET_PATH_BYTES = 100


class DataFolderError(RuntimeError):
    """The data folder cannot be used; the message says why and what to do."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder until the block ends, or this process does, however it dies.

    Raises:
        DataFolderError: Another process holds it.
    """
    path = folder / "lock"
    descriptor = _lock(path)
    try:
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _lock(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(descriptor, 20).decode() or "unknown"
            os.close(descriptor)
            raise DataFolderError(
                f"The data folder {path.parent} is in use by another Normstream service (process {owner}). "
                "Stop that service, or give this one a data folder of its own."
            ) from None
        # The last owner may have removed the file as it left: a lock on a removed file excludes nobody.
        if _leads_to(path, descriptor):
            return descriptor
        os.close(descriptor)


def _leads_to(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def private(folder: Path) -> Path:
    """The folder, made if need be, and closed to other users.

    Raises:
        DataFolderError: Somebody else could put files there.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise DataFolderError(f"{folder} is not a folder of this user: remove it, or choose another data folder.")
    folder.chmod(0o700)
    return folder


@contextmanager
def socket_path(folder: Path) -> Iterator[Path]:
    """Where a unix socket for the folder goes: inside, or where the path is too long, a temporary folder."""
    path = folder / "redis.sock"
    short = len(os.fsencode(path)) <= MAX_SOCKET_PATH_BYTES
    if not short:
        # The name is the same at every start, so that a start finds what the last one left behind.
        name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:12]
        path = private(Path(tempfile.gettempdir(), f"normstream-{os.geteuid()}-{name}")) / path.name
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
        if not short:
            path.parent.rmdir()
