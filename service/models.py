"""The models that this server hosts."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from normstream.adaptation import HostedModel, ModelSpec, Recipe, calibration, load_model
from normstream.service.background import meanwhile
from normstream.service.engine import Engine
from normstream.service.errors import Conflict, NotFound
from normstream.service.settings import Settings
from normstream.service.tensor_thread import TensorThread


class Models(Mapping[str, Engine]):
    """Engines by name; the first is the default."""

    def __init__(self, engines: Mapping[str, Engine]) -> None:
        self._engines = dict(engines)

    def __getitem__(self, name: str) -> Engine:
        try:
            return self._engines[name]
        except KeyError:
            hosted = ", ".join(self._engines)
            raise NotFound(f"There is no model {name[:100]!r} here; hosted are {hosted}.") from None

    def __contains__(self, name: object) -> bool:
        return name in self._engines

    def __iter__(self) -> Iterator[str]:
        return iter(self._engines)

    def __len__(self) -> int:
        return len(self._engines)

    @property
    def default(self) -> str:
        """The model of a stream that names none."""
        return next(iter(self._engines))

    def of_stream(self, stream_id: str, model: str, fingerprint: str) -> Engine:
        """The engine that a stream was made for.

        Raises:
            Conflict: when it is not hosted, or its weights or preprocessing have changed since.
        """
        engine = self._engines.get(model)
        if engine is None:
            raise Conflict(
                f"Stream {stream_id!r} belongs to model {model!r}, which this server does not host"
                f" ({', '.join(self._engines)}). Start it with --model {model}, or delete the stream."
            )
        if engine.hosted.fingerprint != fingerprint:
            raise Conflict(
                f"Stream {stream_id!r} was made for model {model!r} with fingerprint {fingerprint}, and the one hosted"
                f" has {engine.hosted.fingerprint}: its weights or preprocessing differ. Host those again, or delete"
                " the stream and make it anew."
            )
        return engine

    def teacher(self, recipe: Recipe) -> HostedModel | None:
        """The model that teaches streams of the recipe; None when they have no teacher, or it is not hosted."""
        engine = self._engines.get(recipe.teacher or "")
        return None if engine is None else engine.hosted


@asynccontextmanager
async def hosting(settings: Settings) -> AsyncIterator[Models]:
    """The models of the settings, loaded and at work while the block lasts.

    Raises:
        HostingError: when one cannot be loaded; the message says what to do.
    """
    async with AsyncExitStack() as stack:
        thread = stack.enter_context(TensorThread(settings.threads or available_cores()))
        engines: dict[str, Engine] = {}
        for spec in settings.models:
            hosted = await asyncio.wrap_future(thread.submit(_load, spec, settings))
            engines[hosted.name] = Engine(hosted, thread, settings)
        for engine in engines.values():
            await stack.enter_async_context(engine.running())
        await stack.enter_async_context(meanwhile(thread.tidy()))
        yield Models(engines)


def _load(spec: ModelSpec, settings: Settings) -> HostedModel:
    """The model, with its calibration where `normstream calibrate` has left one."""
    hosted = load_model(spec, settings.device)
    hosted.calibration = calibration.load(hosted, settings.data)
    return hosted


def available_cores() -> int:
    """Cores that this process may use: by its affinity, and by its control group's quota, as in a container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):
        return cores
