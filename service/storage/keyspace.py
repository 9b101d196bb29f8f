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

    @property
    def edges(self) -> str:
        """Sorted set of all edge ids."""
        return f"{self.prefix}:edges"

    @property
    def waiting(self) -> str:
        """Sorted set of the ids of streams for which samples wait."""
        return f"{self.prefix}:waiting"

    def edge(self, edge_id: str) -> str:
        """Hash of an edge's record."""
        return f"{self.prefix}:{{{edge_id}}}:edge"

    def edges_of(self, stream_id: str) -> str:
        """Set of the ids of the edges that share the stream."""
        return f"{self.prefix}:{{{stream_id}}}:edges"

    def queue(self, stream_id: str) -> str:
        """Sorted set of the ids of the samples that wait for the stream, by the time they came."""
        return f"{self.prefix}:{{{stream_id}}}:queue"

    def images(self, stream_id: str) -> str:
        """Hash of those samples' images."""
        return f"{self.prefix}:{{{stream_id}}}:images"

    def tally(self, stream_id: str) -> str:
        """Hash that counts the stream's samples, by edge, and the attempts to learn from them."""
        return f"{self.prefix}:{{{stream_id}}}:tally"

    def samples(self, stream_id: str) -> list[str]:
        """What holds the samples that wait for the stream: queue, images, tally."""
        return [self.queue(stream_id), self.images(stream_id), self.tally(stream_id)]

    def known(self, stream_id: str) -> str:
        """Sorted set of the ids of samples that came, by time: none counts twice."""
        return f"{self.prefix}:{{{stream_id}}}:known"

    def unlabelled(self, stream_id: str) -> list[str]:
        """What holds the stream's predictions whose labels may come, and the labels that came.

        A hash of them, the sorted set of the predictions' ids by time, their size in bytes, and the sorted set of the
        labels' ids by time.
        """
        key = f"{self.prefix}:{{{stream_id}}}:unlabelled"
        return [key, f"{key}:order", f"{key}:bytes", f"{key}:labels"]

    def lease(self, stream_id: str) -> str:
        """Names the worker that learns from the stream's samples at the moment."""
        return f"{self.prefix}:{{{stream_id}}}:lease"

    def releases(self, stream_id: str) -> str:
        """Hash of what edges were sent of the stream's last versions."""
        return f"{self.prefix}:{{{stream_id}}}:releases"
