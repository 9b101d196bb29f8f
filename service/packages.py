"""The packages that edges run models from: made once for each model, and kept on disk."""

import asyncio
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from anyio import to_thread
from numpy.typing import NDArray

from normstream.adaptation import HostingError, ModelSpec
from normstream.adaptation.package_files import MANIFEST, is_whole, place_of
from normstream.service.engine import Engine
from normstream.service.errors import Invalid, Unavailable
from normstream.service.exporting import exported


@dataclass(frozen=True, slots=True, eq=False)
class Package:
    """A package on disk, and of its contents what updates are made from."""

    folder: Path
    manifest: dict[str, Any] = field(repr=False)
    source: dict[str, NDArray[np.float32]] = field(repr=False)
    reference: NDArray[np.uint8] = field(repr=False)  # [N, H, W, 3]

    @classmethod
    def open(cls, folder: Path) -> Self:
        """From the folder that the export made."""
        with np.load(folder / "norm.npz") as archive:
            source = {name: archive[name] for name in ("weight", "bias", "mean", "var") if name in archive}
        manifest = json.loads((folder / MANIFEST).read_bytes())
        return cls(folder, manifest, source, np.load(folder / "reference.npy"))

    @property
    def files(self) -> dict[str, str]:
        """The digests of its files, by name."""
        return {name: each["sha256"] for name, each in self.manifest["files"].items()}


class Packages:
    """Packages by model. A model that cannot be exported is tried once.

    Args:
        folder: Where they are kept.
        specs: Of the hosted models.
        threads: Cores that making one may use.
    """

    def __init__(self, folder: Path, specs: Iterable[ModelSpec], threads: int) -> None:
        self._folder = folder
        self._threads = threads
        self._specs = {spec.title: spec for spec in specs}
        self._making: dict[str, asyncio.Task[Path]] = {}
        self._opened: dict[str, Package] = {}
        self._refused: dict[str, str] = {}

    async def of(self, engine: Engine) -> Package:
        """The package of a model; the first time that may take many seconds.

        Raises:
            Invalid: when the model cannot be exported, with what stands in the way.
            Unavailable: when it cannot be made for now.
        """
        fingerprint = engine.hosted.fingerprint
        if fingerprint not in self._opened:
            try:
                self._opened[fingerprint] = await self._made(engine)
            except HostingError as error:
                self._refused[fingerprint] = str(error)
            except OSError as error:
                raise Unavailable(f"The package of the model cannot be made now: {error}.", retry_after_s=60) from error
        if fingerprint in self._refused:
            raise Invalid(f"Model {engine.hosted.name!r} cannot run on an edge: {self._refused[fingerprint]}")
        return self._opened[fingerprint]

    async def _made(self, engine: Engine) -> Package:
        if refused := self._refused.get(engine.hosted.fingerprint):
            raise HostingError(refused)
        place = place_of(self._folder, engine.hosted.fingerprint)
        if not await to_thread.run_sync(is_whole, place):
            place = await self._exported(engine.hosted.name, engine.hosted.fingerprint)
        return await to_thread.run_sync(Package.open, place)

    async def _exported(self, name: str, fingerprint: str) -> Path:
        """Have it made, once for all who ask meanwhile, and to the end though they have gone."""
        making = self._making.get(fingerprint)
        if making is None:
            making = asyncio.create_task(exported(self._specs[name], fingerprint, self._folder, self._threads))
            self._making[fingerprint] = making
            making.add_done_callback(lambda done: self._done(fingerprint, done))
        return await asyncio.shield(making)

    def _done(self, fingerprint: str, making: asyncio.Task[Path]) -> None:
        del self._making[fingerprint]
        if not making.cancelled():
            making.exception()  # Those who wait for it have it; where none does, nobody is to be told.
