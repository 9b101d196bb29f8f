"""What the server sets for its process."""

import os

import pytest

from normstream.service.tuning import spin_briefly


@pytest.fixture
def environment(monkeypatch):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.setenv(name, "")  # Else what is set during a test would stay.
        monkeypatch.delenv(name)
    return monkeypatch


def test_threads_spin_for_a_while_only(environment):
    spin_briefly()
    assert 0 < int(os.environ["GOMP_SPINCOUNT"]) < 300_000  # GNU's default


@pytest.mark.parametrize(("name", "value"), [("GOMP_SPINCOUNT", "7"), ("OMP_WAIT_POLICY", "ACTIVE")])
def test_the_environment_has_the_last_word(environment, name, value):
    environment.setenv(name, value)
    spin_briefly()
    assert os.environ.get("GOMP_SPINCOUNT") == (value if name == "GOMP_SPINCOUNT" else None)
