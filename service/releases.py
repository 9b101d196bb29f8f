"""What edges are sent of a stream: made once for each version, kept for the differences to later ones."""

import asyncio

import torch

from normstream.adaptation import HostedModel, decode, edge_parameters
from normstream.adaptation.reference import reference_logits
from normstream.service.engine import Engine
from normstream.service.errors import Conflict
from normstream.service.packages import Package
from normstream.service.storage.records import StreamRecord, StreamSummary
from normstream.service.storage.store import Store
from normstream.service.updates import Precision, Release, offsets, rebuilt


def tag_of(stream: StreamRecord | StreamSummary) -> str:
    """What names a version of a stream's parameters; edges take it as it is."""
    return f"{stream.generation}.{stream.state_version}"


def versions_behind(stream: StreamSummary, tag: str | None) -> int | None:
    """How many versions a tag is behind; None when it is none of this stream's."""
    generation, _, version = (tag or "").partition(".")
    if generation != stream.generation or not version.isdecimal() or int(version) > stream.state_version:
        return None
    return stream.state_version - int(version)


class Releases:
    """Finds releases in the store, and makes those that are not there."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._making: dict[tuple[str, str, Precision], asyncio.Task[Release]] = {}

    async def newest(self, stream: StreamSummary, engine: Engine, package: Package, precision: Precision) -> Release:
        """The release of the stream's version, or of one that came meanwhile.

        Raises:
            Conflict: when its parameters cannot be sent.
        """
        if found := await self.kept(stream.id, precision, tag_of(stream)):
            return found
        # Of a fleet that asks at once the first has it made, and all get it.
        key = (stream.id, tag_of(stream), precision)
        if key not in self._making:
            task = asyncio.create_task(self._make(stream.id, engine, package, precision))
            self._making[key] = task
            task.add_done_callback(lambda _: self._making.pop(key, None))
        return await asyncio.shield(self._making[key])

    async def kept(self, stream_id: str, precision: Precision, tag: str) -> Release | None:
        """A release that was made before, if it is among the last."""
        packed = await self._store.releases.get(stream_id, precision, tag)
        return Release.unpack(packed) if packed else None

    async def _make(self, stream_id: str, engine: Engine, package: Package, precision: Precision) -> Release:
        record, _ = await self._store.load(stream_id)
        try:
            release = await engine.do(_release, record, package, precision)
        except ValueError as error:
            raise Conflict(f"The parameters of stream {stream_id!r} cannot be sent: {error}. Reset it.") from None
        await self._store.releases.put(stream_id, precision, release.tag, release.pack())
        return release


def _release(hosted: HostedModel, record: StreamRecord, package: Package, precision: Precision) -> Release:
    """On the tensor thread."""
    parameters = {name: value.numpy() for name, value in edge_parameters(hosted, decode(record.state)).items()}
    offset_bytes, precision = offsets(parameters, package.source, precision)
    served = rebuilt(package.source, offset_bytes, precision)
    tensors = {name: torch.from_numpy(values) for name, values in served.items()}
    return Release(
        tag=tag_of(record),
        precision=precision,
        tensors={name: len(values) for name, values in served.items()},
        created_at=record.state_at,
        offsets=offset_bytes,
        probe=reference_logits(hosted, tensors, package.reference),
    )
