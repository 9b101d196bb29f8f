"""The application: models, store and routes put together."""

import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute, iter_route_contexts
from PIL import Image

from normstream.service.admission import Admission
from normstream.service.background import meanwhile
from normstream.service.body_limit import BodyLimit
from normstream.service.edges import Edges
from normstream.service.errors import MEDIA_TYPE, ProblemDetails, answer_with_problems
from normstream.service.labelling import Labeller
from normstream.service.models import available_cores, hosting
from normstream.service.packages import Packages
from normstream.service.predicting import Predictor
from normstream.service.routes import edges, events, health, labels, models, packages, predict, snapshots, streams
from normstream.service.settings import Settings
from normstream.service.storage.embedded_redis import EmbeddedRedis
from normstream.service.storage.records import StoreUnavailable
from normstream.service.storage.redis_link import connect
from normstream.service.storage.store import Store
from normstream.service.streams import Streams
from normstream.service.teaching import Classroom

_log = logging.getLogger("normstream")


class _Application(FastAPI):
    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document, in which problems have their own media type; FastAPI gives a route but one."""
        if self.openapi_schema is None:
            for operations in super().openapi()["paths"].values():
                for operation in operations.values():
                    problem = operation["responses"]["default"]
                    problem["content"] = {MEDIA_TYPE: problem["content"]["application/json"]}
        return super().openapi()


def create_app(settings: Settings) -> FastAPI:
    """The service as an ASGI application; models and Redis are there while its lifespan lasts."""
    app = _Application(
        title="Normstream",
        summary="Image models that keep adapting to each camera",
        version=version("normstream"),
        lifespan=_lifespan,
        generate_unique_id_function=_operation_id,
        responses={"default": {"model": ProblemDetails, "description": "A problem (RFC 9457)"}},
    )
    app.state.settings = settings
    app.state.admission = Admission(settings.max_queue)
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes)
    answer_with_problems(app)
    for module in (models, packages, streams, predict, labels, snapshots, events, edges, health):
        app.include_router(module.router)
    # FastAPI builds routes when they are first asked for: not in a client's request, and not in several threads
    # at once, where pydantic's warnings, which it mutes meanwhile for the whole process, can come through.
    deque(iter_route_contexts(app.routes), maxlen=0)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    settings: Settings = app.state.settings
    # Pillow's own limit is on single images and higher than ours, which is on the request (images.py).
    Image.MAX_IMAGE_PIXELS = None
    async with AsyncExitStack() as stack:
        hosted = await stack.enter_async_context(hosting(settings))
        url = settings.redis_url or (await stack.enter_async_context(EmbeddedRedis(settings.data))).url
        store = Store(
            connect(url, timeout_s=settings.redis_timeout_s),
            timeout_s=settings.redis_timeout_s,
            idempotency_ttl_s=settings.idempotency_ttl_s,
            cache_bytes=settings.cache_bytes,
            max_samples=settings.max_samples,
            max_sample_bytes=settings.max_sample_bytes,
            label_ttl_s=settings.label_ttl_s,
            max_unlabelled=settings.max_unlabelled,
            max_unlabelled_bytes=settings.max_unlabelled_bytes,
        )
        stack.push_async_callback(store.aclose)
        await _warn(store.check)
        app.state.streams = Streams(hosted, store, settings)
        app.state.predictor = Predictor(app.state.streams, settings)
        app.state.labeller = Labeller(app.state.streams, app.state.predictor, settings)
        app.state.packages = Packages(
            settings.data / "packages", settings.models, settings.threads or available_cores()
        )
        app.state.edges = Edges(app.state.streams, app.state.packages)
        # Learn from samples until the server drains, or the block ends.
        await stack.enter_async_context(meanwhile(_classroom(app).run()))
        yield
        app.state.admission.draining.set()


def _classroom(app: FastAPI) -> Classroom:
    streams: Streams = app.state.streams
    return Classroom(
        streams.models,
        streams.store,
        arrival=app.state.edges.arrival,
        closing=app.state.admission.draining,
        sample_ttl_s=app.state.settings.sample_ttl_s,
    )


async def _warn(check: Callable[[], Awaitable[list[str]]]) -> None:
    try:
        for warning in await check():
            _log.warning(warning)
    except StoreUnavailable as error:
        _log.warning("The store is away, and the server not ready until it is back: %s", error)


def _operation_id(route: APIRoute) -> str:
    return route.name
