"""Models that are exported once."""

import pytest
from hosted import Both, Convolutions, Tokens, host, packaged

from normstream.adaptation import HostedModel
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
def convolutions_package(convolutions: HostedModel, tmp_path_factory: pytest.TempPathFactory) -> Package:
    return packaged(convolutions, tmp_path_factory.mktemp("packages"))


@pytest.fixture(scope="session")
def retrained_package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    """The network of `convolutions` with other weights."""
    return packaged(host(Convolutions, seed=1), tmp_path_factory.mktemp("packages"))


@pytest.fixture(scope="session")
def tokens_package(tokens: HostedModel, tmp_path_factory: pytest.TempPathFactory) -> Package:
    return packaged(tokens, tmp_path_factory.mktemp("packages"))


@pytest.fixture(scope="session")
def both_package(both: HostedModel, tmp_path_factory: pytest.TempPathFactory) -> Package:
    return packaged(both, tmp_path_factory.mktemp("packages"))
