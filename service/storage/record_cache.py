"""The records a worker has at hand, so that their states need not travel again."""

from collections import OrderedDict

from normstream.service.storage.records import StreamRecord


class RecordCache:
    """Least recently used records of streams, bounded by the bytes of what they hold.

    A cached record may be stale: whoever uses one asks Redis whether its generation and version still hold.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._bytes = 0
        self._records: OrderedDict[str, StreamRecord] = OrderedDict()

    def get(self, stream_id: str) -> StreamRecord | None:
        """The record last put, if it is still here."""
        if stream_id in self._records:
            self._records.move_to_end(stream_id)
        return self._records.get(stream_id)

    def put(self, record: StreamRecord) -> None:
        """Keep a record in place of an older one of the same stream."""
        self.drop(record.id)
        self._records[record.id] = record
        self._bytes += _size(record)
        while self._bytes > self._limit_bytes:
            self.drop(next(iter(self._records)))

    def drop(self, stream_id: str) -> None:
        """Forget a stream."""
        if record := self._records.pop(stream_id, None):
            self._bytes -= _size(record)


def _size(record: StreamRecord) -> int:
    return len(record.state) + len(record.scores)
