"""Fixtures of the library's tests."""

import pytest
from small_net import host_small

from normstream.adaptation import HostedModel


@pytest.fixture(scope="session")
def small() -> HostedModel:
    return host_small()
