"""The names of our keys in Redis."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Keyspace:
    """Key names under one prefix.

    The id stands in braces, Redis' hash tag: all keys of a stream share a slot, as a script that touches
    several of them needs in a cluster.
    """

    prefix: str

    @property
    def index(self) -> str:
        """Sorted set of all stream ids."""
        return f"{self.prefix}:streams"

    def stream(self, stream_id: str) -> str:
        """Hash of the stream's record."""
        return f"{self.prefix}:{{{stream_id}}}:stream"

    def events(self, stream_id: str) -> str:
        """Redis stream of what happened to the stream."""
        return f"{self.prefix}:{{{stream_id}}}:events"

    def replay(self, stream_id: str, idempotency_key: str) -> str:
        """Hash of the answer given under an idempotency key."""
        return f"{self.prefix}:{{{stream_id}}}:replay:{idempotency_key}"

    def snapshots_of(self, stream_id: str) -> str:
        """Sorted set of the ids of the stream's snapshots, by time."""
        return f"{self.prefix}:{{{stream_id}}}:snapshots"

    def snapshot(self, snapshot_id: str) -> str:
        """Hash of a snapshot's record."""
        return f"{self.prefix}:{{{snapshot_id}}}:snapshot"
