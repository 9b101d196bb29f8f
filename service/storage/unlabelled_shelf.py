"""Predictions whose labels may still come, in Redis, and the labels that came: a bounded shelf for each stream.

Labels have bounds of their own: an image whose label is forgotten could count twice.
"""

import math
import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from normstream.service.storage.keyspace import Keyspace
from normstream.service.storage.records import Labelled, Unlabelled
from normstream.service.storage.redis_link import RedisLink

_MOST_LABELS = 65_536  # of a stream, some 100 bytes each
_READ_AT_ONCE = 32  # entries, so that one exchange with Redis stays short
_HEAD = struct.Struct("<d?dI")  # when it was kept, whether it is a label, confidence, bytes of the text


class UnlabelledShelf:
    """Keeps predictions for a while, each under its id, in place of which their labels stay for as long.

    They are written with what they belong to (`Store.commit`, `Store.remember`), and only read here.

    Args:
        link: To Redis.
        keys: Their names there.
        clock: Gives the unix time in seconds.
        ttl_s: How long each is kept; 0 keeps none.
        most: How many predictions of a stream are kept; the oldest go first.
        most_bytes: Their size.
    """

    def __init__(
        self,
        link: RedisLink,
        keys: Keyspace,
        clock: Callable[[], float],
        *,
        ttl_s: float,
        most: int,
        most_bytes: int,
    ) -> None:
        self._link = link
        self._keys = keys
        self._clock = clock
        self._ttl_s = ttl_s
        self._limits = {"most": most, "most_bytes": most_bytes, "most_labels": _MOST_LABELS}

    def command(
        self, predicted: Iterable[Unlabelled], labelled: Iterable[tuple[str, str]]
    ) -> tuple[dict[str, Any] | None, list[bytes]]:
        """What the script `unlabelled` is to be asked for, None if nothing; and the values that go with it."""
        if not self._ttl_s:
            return None, []
        now = self._clock()
        predictions = {each.id: _packed(now, each.answer, each.data, confidence=each.confidence) for each in predicted}
        labels = {sample_id: _packed(now, label, is_label=True) for sample_id, label in labelled}
        if not predictions and not labels:
            return None, []
        times = {"now": now, "since": now - self._ttl_s, "ttl_ms": math.ceil(self._ttl_s * 1000)}
        asked = {"predictions": list(predictions), "labels": list(labels), **times, **self._limits}
        return asked, [*predictions.values(), *labels.values()]

    async def find(self, stream_id: str, ids: Sequence[str]) -> dict[str, Unlabelled | Labelled]:
        """Those of the ids that are kept, as predictions or, since their labels came, as these."""
        since = self._clock() - self._ttl_s
        key = self._keys.unlabelled(stream_id)[0]
        found: dict[str, Unlabelled | Labelled] = {}
        for start in range(0, len(ids), _READ_AT_ONCE):
            group = ids[start : start + _READ_AT_ONCE]
            async with self._link.reach() as redis:
                values: Any = await redis.hmget(key, list(group))
            for sample_id, value in zip(group, values, strict=True):
                if value is not None and _HEAD.unpack_from(value)[0] > since:
                    found[sample_id] = _unpacked(sample_id, value)
        return found


def _packed(now: float, text: str, data: bytes = b"", *, confidence: float = 0.0, is_label: bool = False) -> bytes:
    encoded = text.encode()
    return _HEAD.pack(now, is_label, confidence, len(encoded)) + encoded + data


def _unpacked(sample_id: str, value: bytes) -> Unlabelled | Labelled:
    _, is_label, confidence, length = _HEAD.unpack_from(value)
    end = _HEAD.size + length
    text = value[_HEAD.size : end].decode()
    return Labelled(sample_id, text) if is_label else Unlabelled(sample_id, text, confidence, value[end:])
