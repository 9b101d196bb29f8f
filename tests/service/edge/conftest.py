"""A server for edges, and one edge of it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from edges import SLOW_S, EdgeApi
from servers import Api, Live, live

from normstream.adaptation import ModelSpec
from normstream.service.settings import Settings


@pytest.fixture(scope="module")
def cloud(redis_url: str, tiny_models: tuple[ModelSpec, ModelSpec], kept: Path) -> Iterator[Live]:
    """A server that hosts a student and its teacher."""
    with live(Settings(models=tiny_models, redis_url=redis_url, data=kept, max_images=8)) as running:
        yield running


@pytest.fixture
def api(cloud: Live) -> Iterator[Api]:
    with Api(cloud.url, timeout=SLOW_S) as client:
        yield client


@pytest.fixture
def edge(api: Api) -> EdgeApi:
    """An edge whose stream learns when a batch is full."""
    made = EdgeApi(api)
    assert made.registered.status_code == 201, made.registered.text
    return made
