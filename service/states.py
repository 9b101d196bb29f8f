"""From the store's records to streams' states, and back.

A state is two blobs in the store: what a stream has learnt from labels is far larger than the rest, and changes with
lessons alone. So a prediction neither writes it nor, as a rule, decodes it.
"""

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import replace

import torch
from anyio import CapacityLimiter, to_thread

from normstream.adaptation import (
    ForeignStateError,
    HostedModel,
    HostingError,
    Learnt,
    Recipe,
    StateError,
    StreamState,
    admit,
    decode,
    decode_learnt,
    encode,
    encode_learnt,
    initial_state,
)
from normstream.service.errors import Conflict, invalid
from normstream.service.storage.records import Incomplete, StreamRecord


class States:
    """The states of records.

    Args:
        learnt: Reads from the store what the stream of a record has learnt.
        device: Where states are to be: that of the models.
        limit_bytes: Of what streams have learnt that is kept at hand decoded; the least recently used goes first.
        decoders: Bounds the threads that decode.
    """

    def __init__(
        self,
        learnt: Callable[[StreamRecord], Awaitable[bytes]],
        device: torch.device,
        limit_bytes: int,
        decoders: CapacityLimiter,
    ) -> None:
        self._read = learnt
        self._device = device
        self._limit_bytes = limit_bytes
        self._decoders = decoders
        self._bytes = 0
        self._learnt: OrderedDict[str, tuple[str, Learnt]] = OrderedDict()  # by stream, with the tag

    async def of(self, record: StreamRecord) -> StreamState:
        """The whole state.

        Raises:
            Conflict: when it is damaged.
            StoreError: when what it had learnt is gone, since it has learnt more.
        """
        try:
            state = decode(record.state)
            if (state.fingerprint, state.recipe.canonical()) != (record.fingerprint, record.recipe):
                raise StateError("it belongs to another model or recipe than the stream")
            if state.recipe.learn is None:
                return state.to(self._device)
            learnt = await self._decoded(record)
            if (learnt.fingerprint, learnt.learning) != (record.fingerprint, state.recipe.learn):
                raise StateError("what it has learnt belongs to another model or recipe than the stream")
        except (StateError, Incomplete) as error:
            raise Conflict(
                f"The state of stream {record.id!r} is damaged ({error}). Reset it, or restore a snapshot."
            ) from None
        return replace(state.to(self._device), learnt=learnt)

    async def _decoded(self, record: StreamRecord) -> Learnt:
        tag, known = self._learnt.get(record.id, (None, None))
        if known is not None and tag == record.learnt_tag:
            self._learnt.move_to_end(record.id)
            return known
        data = await self._read(record)
        learnt = await to_thread.run_sync(decode_learnt, data, limiter=self._decoders)
        return self.keep(record, learnt)

    def keep(self, record: StreamRecord, learnt: Learnt) -> Learnt:
        """Have at hand what the stream of a record has learnt; gives it back on the models' device."""
        placed = learnt.to(self._device)
        self.drop(record.id)
        self._learnt[record.id] = record.learnt_tag, placed
        self._bytes += placed.bytes
        while self._bytes > self._limit_bytes:
            self.drop(next(iter(self._learnt)))
        return placed

    def drop(self, stream_id: str) -> None:
        """Have nothing of a stream at hand any more."""
        if stream_id in self._learnt:
            _, learnt = self._learnt.pop(stream_id)
            self._bytes -= learnt.bytes


def split(state: StreamState) -> tuple[bytes, bytes | None]:
    """A state as the store's two blobs: without what was learnt, and that; None where the recipe learns nothing."""
    return encode(replace(state, learnt=None)), None if state.learnt is None else encode_learnt(state)


def initial(hosted: HostedModel, recipe: Recipe, teacher: HostedModel | None) -> StreamState:
    """The state of a stream that has seen nothing.

    Raises:
        Invalid: when the model cannot follow the recipe.
    """
    try:
        return initial_state(hosted, recipe, teacher)
    except HostingError as error:
        raise invalid("body.recipe", str(error)) from None


def decoded(data: bytes) -> StreamState:
    """The state in bytes that came from elsewhere.

    Raises:
        Invalid: when they hold none.
    """
    try:
        return decode(data)
    except StateError as error:
        raise invalid("body", f"no state of a stream: {error}") from None


def admitted(hosted: HostedModel, data: bytes, recipe: Recipe, teacher: HostedModel | None) -> StreamState:
    """The same, when it fits the model and the recipe.

    Raises:
        Problem: when it does not.
    """
    try:
        return admit(decoded(data), hosted, recipe, teacher)
    except (HostingError, ForeignStateError) as error:
        raise Conflict(f"The snapshot does not fit: {error}.") from None
    except StateError as error:
        raise invalid("body", f"no state of a stream: {error}") from None
