"""Models that are exported once, and edge clients of a server that speaks HTTP and knows no models."""

from pathlib import Path
from typing import Any

import pytest
from cloud import cloud
from hosted import Both, Convolutions, Tokens, host, packaged
from surroundings import ALL, SOON, Publisher

from normstream.adaptation import HostedModel, ModelSpec, load_model
from normstream.clients.edge.client import EdgeClient
from normstream.clients.edge.options import Options
from normstream.clients.edge.package import Package


@pytest.fixture(scope="session")
def convolutions() -> HostedModel:
    return host(Convolutions)


@pytest.fixture(scope="session")
def tokens() -> HostedModel:
    return host(Tokens)


@pytest.fixture(scope="session")
def both() -> HostedModel:
    return host(Both)


@pytest.fixture(scope="session")
def convolutions_package(convolutions: HostedModel, packages: Path) -> Package:
    return packaged(convolutions, packages)


@pytest.fixture(scope="session")
def retrained_package(packages: Path) -> Package:
    """The network of `convolutions` with other weights."""
    return packaged(host(Convolutions, seed=1), packages)


@pytest.fixture(scope="session")
def tokens_package(tokens: HostedModel, packages: Path) -> Package:
    return packaged(tokens, packages)


@pytest.fixture(scope="session")
def both_package(both: HostedModel, packages: Path) -> Package:
    return packaged(both, packages)


@pytest.fixture(scope="session")
def lite0() -> HostedModel:
    """The model that is served when none is named."""
    return load_model(ModelSpec.parse("tf_efficientnet_lite0"))


@pytest.fixture(scope="session")
def lite0_package(lite0: HostedModel, packages: Path) -> Package:
    return packaged(lite0, packages)


@pytest.fixture(scope="session")
def package(convolutions_package) -> Package:
    return convolutions_package


@pytest.fixture
def server(package):
    with cloud(package.folder) as running:
        yield running


@pytest.fixture
def start(server, tmp_path):
    """Starts edges, of which none outlives its test."""
    started = []

    def start(folder: str = "edge", edge: str = "gate", **arguments: Any) -> EdgeClient:
        options = Options(**{"criteria": ALL, "local": None, **SOON, **arguments.pop("options", {})})
        client = EdgeClient(arguments.pop("server", server.url), edge, tmp_path / folder, options=options, **arguments)
        started.append(client)
        return client

    yield start
    for client in started:
        client.close()


@pytest.fixture
def publisher(server, package) -> Publisher:
    return Publisher(server, package)
