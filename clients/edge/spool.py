"""Samples that wait on the disk to be uploaded.

A SQLite file in write-ahead mode, so that a killed process loses nothing that was put in. It is bounded: where there is
no room the samples that are worth least are dropped. A sample is worth what it can teach, and half of that for each
`half_life_s` that it is older; the order of two samples then never changes, and is kept as one column.

Where the disk is full or cannot be written when an edge starts, the samples wait in memory: inference needs no spool.
"""

from __future__ import annotations

import contextlib
import logging
import math
import sqlite3
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)

_TABLE = """
CREATE TABLE IF NOT EXISTS samples (id TEXT PRIMARY KEY, taken_at REAL NOT NULL, worth REAL NOT NULL,
                                    size INTEGER NOT NULL, image BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS by_worth ON samples (worth, taken_at);
"""
_PAGE_BYTES = 4096
_MEMORY_BYTES = 16 * 2**20  # the most that waits where the disk cannot be used
_LEAST = 1e-9  # usefulness below it is taken for this


@dataclass(frozen=True, slots=True)
class Waiting:
    """A sample that waits: its id, the encoded image, and when that was taken (unix seconds)."""

    id: str
    image: bytes
    taken_at: float


class Spool:
    """The samples that wait; any thread may use it.

    Args:
        path: The file. One that is damaged is put aside under `.damaged` and begun anew.
        max_bytes: The most that the samples may take, in whole pages of the file.
        max_age_s: Older samples are dropped: the server would not take them.
        half_life_s: The age that halves a sample's worth.

    Attributes:
        dropped: Samples dropped since this object was made, for want of room or for their age.
        problem: Why the samples wait in memory, and are lost when the process ends; None where they wait on the disk.
    """

    def __init__(
        self, path: Path, max_bytes: int = 64 * 2**20, max_age_s: float = 86400.0, half_life_s: float = 3600.0
    ) -> None:
        if max_bytes < _PAGE_BYTES:
            raise ValueError(f"max_bytes is {max_bytes}; a spool needs at least {_PAGE_BYTES}")
        self.path = path
        self.max_bytes = max_bytes
        self.dropped = 0
        self.problem: str | None = None
        self._max_age_s = max_age_s
        self._half_life_s = half_life_s
        self._lock = threading.Lock()
        try:
            self._begin(_open(path))
        except (sqlite3.Error, OSError) as error:
            self.problem = f"samples wait in memory alone, until the next start: {path} cannot be used: {error}"
            logger.warning("%s", self.problem)
            self.max_bytes = min(max_bytes, _MEMORY_BYTES)
            self._begin(_connect(":memory:"))

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._database.close()

    def __len__(self) -> int:
        return self._count

    @property
    def waiting_bytes(self) -> int:
        """What the samples take."""
        return self._bytes

    def put(self, sample: Waiting, usefulness: float) -> None:
        """Keep a sample, unless those already here are worth more and there is no room.

        Args:
            sample: The sample; one whose id is here already is passed over.
            usefulness: What it can teach, on any scale above 0 that is the same for all.
        """
        size = _size(sample)
        worth = math.log2(max(usefulness, _LEAST)) + sample.taken_at / self._half_life_s
        with self._lock:
            try:
                self._insert((sample.id, sample.taken_at, worth, size, sample.image), size)
            except sqlite3.Error:  # a full or failing disk costs this sample and nothing else
                self.dropped += 1

    def best(self, count: int, max_bytes: int, now: float) -> list[Waiting]:
        """Return the samples that are worth most, at most so many and, but for the first, so many bytes of images."""
        with self._lock:
            self._drop(self._database.execute("SELECT id FROM samples WHERE taken_at < ?", (now - self._max_age_s,)))
            rows = self._database.execute(
                "SELECT id, image, taken_at FROM samples ORDER BY worth DESC, taken_at DESC LIMIT ?", (count,)
            )
            chosen: list[Waiting] = []
            for row in rows:
                max_bytes -= len(row[1])
                if chosen and max_bytes < 0:
                    break
                chosen.append(Waiting(*row))
            rows.close()
        return chosen

    def oldest(self) -> float | None:
        """Return when the oldest sample was taken; None when there is none."""
        with self._lock:
            taken_at: float | None = self._database.execute("SELECT min(taken_at) FROM samples").fetchone()[0]
        return taken_at

    def remove(self, ids: Iterable[str]) -> None:
        """Forget samples that have been uploaded, or that the server will not have."""
        with self._lock:
            self._delete(list(ids))

    def _begin(self, database: sqlite3.Connection) -> None:
        self._database = database
        try:
            self._count, self._bytes = self._measure()
            with self._lock:
                self._make_room()
        except sqlite3.Error:
            database.close()
            raise

    def _insert(self, row: tuple[str, float, float, int, bytes], size: int) -> None:
        if size > self.max_bytes:
            self.dropped += 1
            return
        added = self._database.execute("INSERT OR IGNORE INTO samples VALUES (?, ?, ?, ?, ?)", row).rowcount
        self._count += added
        self._bytes += added * size
        self._make_room()

    def _make_room(self) -> None:
        while self._bytes > self.max_bytes:
            self._drop(self._database.execute("SELECT id FROM samples ORDER BY worth, taken_at LIMIT 1"))

    def _drop(self, rows: sqlite3.Cursor) -> None:
        ids = [row[0] for row in rows.fetchall()]
        self._delete(ids)
        self.dropped += len(ids)

    def _delete(self, ids: list[str]) -> None:
        statement = "DELETE FROM samples WHERE id = ? RETURNING size"
        with self._database:  # one transaction, committed or rolled back
            self._database.execute("BEGIN")
            sizes = [row[0] for each in ids for row in self._database.execute(statement, (each,)).fetchall()]
        self._count -= len(sizes)
        self._bytes -= sum(sizes)

    def _measure(self) -> tuple[int, int]:
        count, total = self._database.execute("SELECT count(*), coalesce(sum(size), 0) FROM samples").fetchone()
        return int(count), int(total)


def _size(sample: Waiting) -> int:
    """Return the bytes of the pages that a sample takes; the few of its other columns are in the last of them."""
    return math.ceil((len(sample.image) + 128) / _PAGE_BYTES) * _PAGE_BYTES


def _open(path: Path) -> sqlite3.Connection:
    try:
        return _connect(path)
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):
            raise  # not the content: a folder that is not there, a disk that is full
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                path.with_name(path.name + suffix).rename(path.with_name(f"{path.name}{suffix}.damaged"))
        return _connect(path)


def _connect(path: Path | str) -> sqlite3.Connection:
    database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        # With `normal` a killed process loses nothing; after a power cut the last few samples may be missing.
        database.executescript(
            f"PRAGMA page_size = {_PAGE_BYTES}; PRAGMA journal_mode = wal; PRAGMA synchronous = normal;"
            f"PRAGMA journal_size_limit = {2**20}; {_TABLE}"
        )
        if database.execute("PRAGMA quick_check").fetchone()[0] != "ok":
            raise sqlite3.DatabaseError(f"{path} is damaged")
    except sqlite3.Error:
        database.close()
        raise
    return database
