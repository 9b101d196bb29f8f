"""What the tests of edges begin with."""

import hashlib
import hmac
import io
import json
import zlib
from collections.abc import Sequence
from typing import Any

import httpx
import numpy as np
from PIL import Image
from servers import SIZE, Api, new_id, until

KEY = "test-key_" + "k" * 40
BATCH = 4
SLOW_S = 120  # a package is made by a process that has to load torch first


def taught(**changes: Any) -> dict[str, Any]:
    """A recipe for the tiny model that its twin teaches; it learns when a batch is full."""
    update = {"name": "cema", "teacher": "other", "batch": BATCH, "replay": 4, "replay_bytes": 60_000}
    return {"norm": {"name": "tbr"}, "update": {**update, "patience_s": 3600.0, **changes}}


def crop(seed: int = 0, size: tuple[int, int] = SIZE[:0:-1], kind: str = "JPEG") -> bytes:
    """An image as an edge sends it."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize(size).save(file, kind, quality=80)
    return file.getvalue()


def crops(*names: str) -> list[tuple[str, bytes]]:
    return [(name, crop(seed)) for seed, name in enumerate(names)]


class EdgeApi:
    """One edge's calls."""

    def __init__(self, api: Api, edge_id: str = "", key: str = KEY, **fields: Any) -> None:
        self.api, self.id = api, edge_id or new_id("e")
        given = {"id": self.id, "key": key, "model": "tiny", "recipe": taught(), **fields}
        self.registered = api.post("/v1/edges", json=given)
        self.headers = {"Authorization": f"Bearer {key}"}

    @property
    def stream(self) -> str:
        return self.registered.json()["stream"]

    @property
    def tag(self) -> str:
        return self.show()["tag"]

    def show(self) -> dict[str, Any]:
        answer = self.api.get(f"/v1/edges/{self.id}")
        assert answer.status_code == 200, answer.text
        return answer.json()

    def upload(
        self, samples: Sequence[tuple[str, bytes]] = (), report: dict[str, Any] | str | None = None
    ) -> httpx.Response:
        files: list[Any] = [("images", sample) for sample in samples]
        if report is not None:
            text = report if isinstance(report, str) else json.dumps(report)
            files.append(("report", (None, text.encode())))
        return self.api.post(f"/v1/edges/{self.id}/samples", files=files, headers=self.headers)

    def ask(self, **query: Any) -> httpx.Response:
        return self.api.get(f"/v1/edges/{self.id}/affine", params=query, headers=self.headers)


def learnt(edge: EdgeApi, samples: int) -> dict[str, Any]:
    """The edge, when so many samples have been learnt from."""
    return until(lambda: (shown := edge.show())["samples"]["used"] >= samples and shown, SLOW_S)


def opened(answer: httpx.Response, key: str = KEY) -> tuple[dict[str, Any], bytes, np.ndarray]:
    """The header, the offsets as they travelled and the probe of an update, whose signature is right."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/octet-stream"
    expected = hmac.new(key.encode(), answer.content, hashlib.sha256).hexdigest()
    assert answer.headers["Normstream-Signature"] == f"hmac-sha256={expected}"
    line, _, payload = answer.content.partition(b"\n")
    header, plain = json.loads(line), zlib.decompress(payload)
    assert answer.headers["ETag"] == f'"{header["tag"]}"'
    count = int(np.prod(header["probe"]))
    return header, plain[4 * count :], np.frombuffer(plain, "<f4", count).reshape(header["probe"])


def joined(base: bytes, difference: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(base, difference, strict=True))


def digest(offsets: bytes) -> str:
    return "sha256:" + hashlib.sha256(offsets).hexdigest()
