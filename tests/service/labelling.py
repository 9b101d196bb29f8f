"""Photographs, recipes and calls for the tests of labels."""

import base64
import io
import json
from collections.abc import Iterable, Sequence
from typing import Any

import httpx
import numpy as np
import torch
from PIL import Image
from servers import Api

from normstream.adaptation import decode

REPLAY = {"keep": "images", "encoding": "png", "capacity": 12, "batch": 4}
IMAGES = {"batch": 4, "replay": REPLAY, "unlabelled": "images"}
FEATURES = {"batch": 4, "learns": "head", "norm": None, "replay": {"keep": "features"}, "unlabelled": "features"}
LEARN = {"learn": IMAGES}
NEW = {"learn": {**IMAGES, "head": "new"}}


def photo(seed: int, size: tuple[int, int] = (40, 30), *, dark: bool = False) -> bytes:
    """A PNG of random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 40 if dark else 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def photos(*seeds: int) -> list[bytes]:
    return [photo(seed) for seed in seeds]


def predict(api: Api, stream: str, files: Iterable[bytes], **query: Any) -> list[dict[str, Any]]:
    """The predictions of files."""
    answer = api.post(f"/v1/streams/{stream}/predict", files=[("images", file) for file in files], params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()["predictions"]


def samples(api: Api, stream: str, files: Iterable[bytes], **query: Any) -> list[str]:
    """The ids of their predictions."""
    return [each["sample"] for each in predict(api, stream, files, **query)]


def post(api: Api, stream: str, labels: Sequence[Any], key: str | None = None, **query: Any) -> httpx.Response:
    """Labels as JSON."""
    headers = {} if key is None else {"Idempotency-Key": key}
    return api.post(f"/v1/streams/{stream}/labels", json={"labels": labels}, headers=headers, params=query)


def label(api: Api, stream: str, labels: dict[str, str], **query: Any) -> dict[str, Any]:
    """Labels by sample."""
    answer = post(api, stream, [{"sample": sample, "label": name} for sample, name in labels.items()], **query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def post_images(
    api: Api, stream: str, files: Sequence[bytes], labels: Sequence[Any], key: str | None = None, **query: Any
) -> httpx.Response:
    """Images with their labels, as a form."""
    return api.post(
        f"/v1/streams/{stream}/labels",
        files=[("images", file) for file in files],
        data={"labels": json.dumps(labels)},
        headers={} if key is None else {"Idempotency-Key": key},
        params=query,
    )


def label_images(api: Api, stream: str, files: Sequence[bytes], labels: Sequence[Any], **query: Any) -> dict[str, Any]:
    answer = post_images(api, stream, files, labels, **query)
    assert answer.status_code == 200, answer.text
    return answer.json()


def show(api: Api, stream: str) -> dict[str, Any]:
    """How a stream has done by its labels."""
    answer = api.get(f"/v1/streams/{stream}/labels")
    assert answer.status_code == 200, answer.text
    return answer.json()


def base64_of(file: bytes) -> str:
    return base64.b64encode(file).decode()


def learnt(api: Api, stream: str) -> dict[str, torch.Tensor]:
    """The tensors of what a stream has learnt."""
    found = decode(api.state(stream)).learnt
    assert found is not None
    return found.tensors


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())
