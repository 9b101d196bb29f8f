"""The folder in which everything lives that an edge must not forget.

edge.json       who this edge is, its key among that; readable by its owner only
packages/       the files of the model, by fingerprint
update          the last good update, with its signature
rolled_back     the name of the version that came after it and was rolled back
statistics      the edge's own running statistics
state.json      what the selection of samples remembers, and the counters
spool.sqlite    samples that wait to be uploaded
status.json     how things were a few seconds ago, for `normstream-edge status`
lock            held while a client runs; two must not share a folder

A file is written whole under another name and then renamed, so that a process killed at any time leaves the old file or
the new one.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import IO, Any

from normstream.clients.errors import InvalidArgument


@dataclass(frozen=True, slots=True)
class Identity:
    """Who an edge is, and what its server said when it registered.

    Attributes:
        edge: Its id.
        key: The secret that it shares with its server; never shown.
        model: The model that it asked for; None for the server's default one.
        recipe: How it is to be adapted.
        group: Edges of one group share their adaptation.
        hosted: The name of the model that it got; None until it is registered.
        taught: Whether it has a teacher; without one no samples are uploaded.
        fingerprint: The fingerprint of that model's weights.
    """

    edge: str
    key: str
    model: str | None = None
    recipe: Any = "cema"
    group: str | None = None
    hosted: str | None = None
    taught: bool = True
    fingerprint: str | None = None

    def __repr__(self) -> str:
        return f"Identity(edge={self.edge!r}, hosted={self.hosted!r})"

    def request(self) -> dict[str, Any]:
        """Return the body of the call that registers it."""
        asked = {"id": self.edge, "key": self.key, "model": self.model, "recipe": self.recipe, "group": self.group}
        return {name: value for name, value in asked.items() if value is not None}


def new_key() -> str:
    """Make up a key."""
    return secrets.token_urlsafe(32)


class Folder:
    """An edge's folder; made if it is not there.

    Raises:
        InvalidArgument: The folder cannot be made or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)  # what a camera saw is nobody else's business
        except OSError as error:
            raise InvalidArgument(f"folder {path} cannot be made: {error.strerror}") from error

    @property
    def packages(self) -> Path:
        """Where packages are cached."""
        return self.path / "packages"

    @property
    def spool(self) -> Path:
        """The file of the spool."""
        return self.path / "spool.sqlite"

    def lock(self) -> IO[bytes]:
        """Take the folder for this process, until the file returned is closed or the process ends.

        Raises:
            InvalidArgument: Another process has it, or the folder cannot be written.
        """
        try:
            file = (self.path / "lock").open("ab")
        except OSError as error:
            raise InvalidArgument(f"folder {self.path} cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            raise InvalidArgument(f"folder {self.path} is in use by another edge client; give each its own") from error
        return file

    def in_use(self) -> bool:
        """Return whether a client runs on this folder."""
        try:
            file = (self.path / "lock").open("rb")
        except OSError:
            return False
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return True
        return False

    def identity(self) -> Identity | None:
        """Read who this edge is; None for a new folder.

        Raises:
            InvalidArgument: The file is damaged. It holds the only copy of the key, so nothing is put in its place.
        """
        path = self.path / "edge.json"
        if not path.exists():
            return None
        try:
            content = json.loads(path.read_bytes())
            return Identity(**{field.name: content[field.name] for field in fields(Identity) if field.name in content})
        except (ValueError, TypeError, OSError) as error:
            raise InvalidArgument(
                f"{path} cannot be read ({error}); restore it, or delete it and give the edge a new id"
            ) from error

    def save_identity(self, identity: Identity) -> None:
        """Keep who this edge is."""
        self._write("edge.json", json.dumps(asdict(identity)).encode(), mode=0o600)

    def update(self) -> tuple[bytes, str] | None:
        """Read the last good update and its signature; None when there is none."""
        try:
            signature, _, body = (self.path / "update").read_bytes().partition(b"\n")
        except OSError:
            return None
        return body, signature.decode("ascii", "replace")

    def save_update(self, body: bytes, signature: str) -> None:
        """Keep an update that proved good."""
        self._write("update", signature.encode() + b"\n" + body)
        (self.path / "rolled_back").unlink(missing_ok=True)

    def rolled_back(self) -> str | None:
        """Read which version was rolled back since the last good update; None when none was."""
        try:
            return (self.path / "rolled_back").read_text("utf-8")
        except (OSError, ValueError):
            return None

    def save_rolled_back(self, tag: str) -> None:
        """Keep which version is not to be tried again."""
        self._write("rolled_back", tag.encode())

    def statistics(self) -> bytes | None:
        """Read the running statistics; None when there are none."""
        try:
            return (self.path / "statistics").read_bytes()
        except OSError:
            return None

    def save_statistics(self, content: bytes) -> None:
        """Keep the running statistics; they can be missed, and so without waiting for the disk."""
        self._write("statistics", content, sync=False)

    def read(self, name: str) -> dict[str, Any]:
        """Read a file of JSON; empty when it is not there or damaged, for it holds nothing that cannot be missed."""
        try:
            content = json.loads((self.path / name).read_bytes())
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def write(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a file of JSON; often, and so without waiting for the disk."""
        self._write(name, json.dumps(content).encode(), sync=False)

    def _write(self, name: str, content: bytes, mode: int = 0o644, *, sync: bool = True) -> None:
        temporary = self.path / f".{name}.new"
        temporary.unlink(missing_ok=True)
        with open(temporary, "xb", opener=lambda path, flags: os.open(path, flags, mode)) as file:
            file.write(content)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        temporary.replace(self.path / name)
