from collections.abc import Iterator
from functools import partial

import pytest
from loopback import Loopback, serving

from normstream.clients.retry import Retry


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NORMSTREAM_URL", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry as always, only sooner; test_sdk_retry.py measures the pauses."""
    for module in ("client", "async_client"):
        monkeypatch.setattr(f"normstream.clients.{module}.Retry", partial(Retry, base_s=0.02))


@pytest.fixture
def server() -> Iterator[Loopback]:
    with serving() as loopback:
        yield loopback
