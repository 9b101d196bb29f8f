"""What the tests of streams begin with."""

import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from servers import NPY, Api, Live, npy, tensors

from normstream.adaptation import decode

LONG_MS = 60_000  # longer than any test


def together(*calls: Callable[[], Any]) -> list[Any]:
    """All at once, each on a thread of its own."""
    with ThreadPoolExecutor(len(calls)) as threads:
        return [future.result() for future in [threads.submit(call) for call in calls]]


def keyed(api: Api, stream: str, key: str, seed: int = 0, **query: Any) -> httpx.Response:
    headers = {"Content-Type": NPY, "Idempotency-Key": key}
    return api.post(f"/v1/streams/{stream}/predict", content=npy(tensors(1, seed)), headers=headers, params=query)


def stepped(api: Api, stream: str, *seeds: int) -> str:
    for seed in seeds:
        assert api.step(stream, tensors(1, seed)).status_code == 200
    return stream


def flat_png(side: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side), "olive").save(file, "PNG")
    return file.getvalue()


def connected(server: Live) -> HTTPConnection:
    """A connection that the server has accepted."""
    connection = HTTPConnection(httpx.URL(server.url).netloc.decode(), timeout=20)
    connection.request("GET", "/healthz")
    connection.getresponse().read()
    return connection


def send(connection: HTTPConnection, stream: str, png: bytes) -> None:
    """Send a predict request and do not wait for its answer."""
    head = b'--b\r\nContent-Disposition: form-data; name="images"; filename="a.png"\r\n\r\n'
    kind = {"Content-Type": "multipart/form-data; boundary=b"}
    connection.request("POST", f"/v1/streams/{stream}/predict", head + png + b"\r\n--b--\r\n", kind)


def same_answer(one: dict[str, Any], other: dict[str, Any]) -> None:
    for image, twin in zip(one["predictions"], other["predictions"], strict=True):
        mine, theirs = (
            {each["class"]: each["probability"] for each in each_image["top"]} for each_image in (image, twin)
        )
        assert mine == pytest.approx(theirs, abs=1e-4)


def same_state(one: bytes, other: bytes) -> None:
    ours, theirs = decode(one), decode(other)
    assert ours.step == theirs.step
    for name, value in ours.tensors.items():
        np.testing.assert_allclose(value, theirs.tensors[name], rtol=1e-4, atol=1e-4)
